"""What job=watch reads and shows: new lines, limited caches, and notes of damaged files."""

import itertools
import json
import os
import shutil
import time

import numpy as np
import pytest
from support.report_folders import picture, run_folder
from support.web import TOKEN, get, post

from ddpm.runner.report import follow, run_record, status
from ddpm.runner.runs import run_dir
from ddpm.runner.runs.find import below
from ddpm.web import runs as runs_module
from ddpm.web.runs import Gone, Runs
from ddpm.web.watch import application

RUNNING = {"state": "running", "total": 1000, "step": 20}


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(runs_module, "time", made)
    return made


@pytest.fixture
def running(tmp_path):
    """The folder of a run that trains now."""
    folder = run_folder(tmp_path / "a", [2.0, 1.0], status=RUNNING, steps=[10], kind="trains")
    with run_dir.lock(folder):
        yield folder


def add_line(folder, step, loss):
    row = {"step": step, "train/loss": loss, "train/images_per_sec": 50.0, "train/memory_mb": 7.0}
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def seen(runs, version=""):
    return json.loads(runs.page(version))


def test_a_new_line_is_shown_within_five_seconds(running, clock):
    runs = Runs(lambda: [running], "runs", 9)
    first = seen(runs)
    [row] = first["runs"]
    assert (row["state"], row["loss"], row["step"]) == ("running", "1.000", 20)
    assert first["panels"][0]["title"] == "training loss"
    add_line(running, 30, 0.5)
    clock.now += 5 - first["wait"]  # the page asks so much later
    later = seen(runs, first["version"])
    assert later["version"] != first["version"]
    [row] = later["runs"]
    assert (row["loss"], row["speed"], row["memory"]) == ("0.5000", "50", "7 MB")
    assert row["left"] == "2 min 37 s"  # 980 steps of 8 images
    assert later["panels"][0]["last"] == 30


def test_files_are_read_at_most_once_a_second(running, clock, monkeypatch):
    calls = []
    monkeypatch.setattr(
        status, "read", lambda folder, read=status.read: calls.append(1) or read(folder)
    )
    runs = Runs(lambda: [running], "runs", 9)
    for _ in range(50):
        clock.now += 0.1
        seen(runs)
    assert len(calls) == 5
    version = seen(runs)["version"]
    assert seen(runs, version).keys() == {"version", "wait"}  # nothing is new


def test_slow_disk_is_read_less_often(running, clock, monkeypatch):
    def slow(folder, read=status.read):
        clock.now += 0.03
        return read(folder)

    monkeypatch.setattr(status, "read", slow)
    runs = Runs(lambda: [running], "runs", 9)
    assert seen(runs)["wait"] == pytest.approx(0.03 / runs_module.SHARE + 0.1)
    assert runs._next_look == pytest.approx(0.03 / runs_module.SHARE)
    clock.now += 10
    monkeypatch.setattr(runs_module, "SHARE", 1e-6)
    assert seen(runs)["wait"] < 5  # but what is new within five seconds
    assert runs._next_look < clock.now + 5


def test_removed_run_becomes_a_note_and_the_others_stay(running, clock, tmp_path):
    other = run_folder(tmp_path / "b", [1.0])
    runs = Runs(lambda: [running, other], "runs", 9)
    gone = seen(runs)["runs"][0]["id"]
    shutil.rmtree(other)
    clock.now += 10
    page = seen(runs)
    assert [row["name"] for row in page["runs"]] == ["a"]
    assert page["notes"] == [
        f"b: {other} is not the folder of a run (no config.yaml, no status.json)."
    ]
    with pytest.raises(Gone, match="this run is gone"):
        runs.picture(gone, "10")
    run_folder(tmp_path / "b", [1.0])
    clock.now += 10
    assert [row["name"] for row in seen(runs)["runs"]] == ["b", "a"]


def test_all_runs_may_be_removed(running, clock):
    found = [running]
    runs = Runs(lambda: found, "runs", 9)
    seen(runs)
    found.clear()
    clock.now += 10
    page = seen(runs)
    assert (page["runs"], page["panels"], page["summary"]) == ([], [], "no jobs")
    assert not runs._followed
    assert not runs._ids
    assert not [key for key in status._seen if key[0].parent == running]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", "a: [", "config.yaml is damaged"),
        ("status.json", '{"state"', "status.json is damaged"),
        ("metrics.jsonl", None, "metrics.jsonl cannot be read"),
    ],
)
def test_damaged_file_is_reported_at_its_run(name, content, words, running, clock, tmp_path):
    other = run_folder(tmp_path / "b", [1.0])
    (other / name).unlink()
    (other / name).mkdir() if content is None else (other / name).write_text(content)
    page = seen(Runs(lambda: [running, other], "runs", 9))
    rows = {row["name"]: row for row in page["runs"]}
    assert rows.keys() == {"a", "b"}
    assert words in " ".join(rows["b"]["problems"])
    assert rows["a"]["problems"] == []


def test_damaged_image_is_reported_in_its_place(running):
    picture(running / "samples" / "step-000020.png")
    whole = (running / "samples" / "step-000010.png").read_bytes()
    (running / "samples" / "step-000030.png").write_bytes(whole[: len(whole) // 2])
    app = application(Runs(lambda: [running], "runs", 9), TOKEN)
    [row] = get(app, "/runs").json["runs"]
    assert row["pictures"] == [10, 20, 30]
    assert get(app, f"/picture/{row['id']}/20").body.startswith(b"\x89PNG")
    answer = get(app, f"/picture/{row['id']}/30")
    assert answer.status == 404
    assert answer.json["error"].startswith("step-000030.png cannot be read")
    (running / "samples" / "step-000020.png").unlink()
    assert get(app, f"/picture/{row['id']}/20").status == 404


def test_image_cache_is_limited(running, monkeypatch):
    monkeypatch.setattr(runs_module, "PICTURES", 2)
    runs = Runs(lambda: [running], "runs", 9)
    for step in (20, 30):
        picture(running / "samples" / f"step-{step:06d}.png", seed=step)
    [row] = seen(runs)["runs"]
    for step in ("10", "20", "30"):
        runs.picture(row["id"], step)
    assert [key[0].stem[-2:] for key in runs._pictures] == ["20", "30"]


@pytest.mark.parametrize("action", ["sample", "checkpoint", "stop"])
def test_request_writes_the_file_of_its_action(action, running, clock):
    app = application(Runs(lambda: [running], "runs", 9), TOKEN)
    [row] = get(app, "/runs").json["runs"]
    assert (row["listens"], row["pending"]) == (True, [])
    assert post(app, "/ask", {"run": row["id"], "action": action}).status == 200
    assert (running / action).is_file()
    assert get(app, "/runs").json["runs"][0]["pending"] == [action]
    (running / action).unlink()
    clock.now += 2
    assert get(app, "/runs").json["runs"][0]["pending"] == []


@pytest.mark.parametrize("more", [{"status": {"state": "done"}}, {"kind": "draws"}])
def test_requests_to_runs_that_do_not_train_are_refused(more, tmp_path):
    arguments = {"status": RUNNING, "kind": "trains"} | more
    folder = run_folder(tmp_path / "a", [1.0], **arguments)
    app = application(Runs(lambda: [folder], "runs", 9), TOKEN)
    with run_dir.lock(folder):
        [row] = get(app, "/runs").json["runs"]
        answer = post(app, "/ask", {"run": row["id"], "action": "sample"})
    assert not row["listens"]
    assert answer.json["error"] == "only a run that trains now can be asked."
    assert not (folder / "sample").exists()


def test_training_runs_are_shown_first_and_the_newest_on_top(tmp_path):
    names = {"a": 30, "b": 10, "drawn": 50, "c": 20}
    for name, began in names.items():
        kind = {"kind": "draws"} if name == "drawn" else {"kind": "trains"}
        folder = run_folder(tmp_path / name, None if name == "drawn" else [1.0, 0.5], **kind)
        os.utime(folder / "config.yaml", (began, began))
    folders = [tmp_path / name for name in sorted(names)]
    page = seen(Runs(lambda: folders, "runs", 9))
    assert [row["name"] for row in page["runs"]] == ["a", "c", "b", "drawn"]
    (panel,) = page["panels"]
    assert sorted(line["run"] for line in panel["scales"][0]["lines"]) == [0, 1, 2]
    assert page["runs"][3]["legend"] == "", "it has no curve"


def test_lines_of_the_panels_belong_to_the_runs_in_their_new_order(tmp_path):
    for name, began in (("a", 10), ("b", 20)):
        folder = run_folder(tmp_path / name, [1.0, 0.5], seed=began)
        os.utime(folder / "config.yaml", (began, began))
    page = seen(Runs(lambda: [tmp_path / "a", tmp_path / "b"], "runs", 9))
    lines = {line["run"]: line["name"] for line in page["panels"][0]["scales"][0]["lines"]}
    assert lines[0].endswith("seed 20")
    assert lines[1].endswith("seed 10")


def test_runs_of_equal_settings_are_told_apart_by_their_folders(tmp_path):
    words = {"a": {}, "b": {}, "c": {"seed": 1}}
    folders = [run_folder(tmp_path / name, [1.0], **more) for name, more in words.items()]
    page = seen(Runs(lambda: folders, "runs", 9))
    legends = {row["name"]: row["legend"] for row in page["runs"]}
    assert legends["a"].endswith("seed 0, a")
    assert legends["b"].endswith("seed 0, b")
    assert legends["c"].endswith("seed 1")
    assert not [note for note in page["notes"] if "more than once" in note]


def test_the_newest_runs_are_shown(tmp_path):
    folders = [run_folder(tmp_path / name, [1.0]) for name in "abcd"]
    for folder, age in zip(folders, (5, 1, 4, 2), strict=True):
        os.utime(folder / "status.json", (1000 - age, 1000 - age))
    page = seen(Runs(lambda: folders, "runs", 2))
    assert {row["name"] for row in page["runs"]} == {"b", "d"}
    assert page["notes"][0] == "2 of 4 runs: those that run, and the newest."


def test_runs_are_found_below_a_folder_and_not_inside_of_runs(tmp_path):
    for name in ("x", "deep/er/y", "x/inside", ".hidden/z"):
        run_folder(tmp_path / "outputs" / name, [1.0])
    (tmp_path / "outputs" / "loop").symlink_to(tmp_path / "outputs")
    found = below(tmp_path / "outputs")
    assert [path.relative_to(tmp_path / "outputs").as_posix() for path in found] == [
        "deep/er/y",
        "x",
    ]
    assert below(tmp_path / "nothing") == []


# A file that grows


def read_whole(file):
    return run_record._metrics(file, [])


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, series in one.items():
        assert np.array_equal(series, other[name]), name


def test_incremental_reading_equals_reading_the_whole_file(tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "metrics.jsonl"
    rows = [{"step": int(s), "train/loss": float(rng.normal()), "eval/x": 1.0 / (s + 1)} for s in
            [*range(50), *range(40, 90)]]  # fmt: skip
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows) + b'{"step": 90, "train'
    ends = [0, *sorted(rng.integers(0, len(content), 12).tolist()), len(content)]
    growing = follow.GrowingMetrics()
    file.touch()
    for start, end in itertools.pairwise(ends):
        with open(file, "ab") as opened:
            opened.write(content[start:end])
        found = growing(file, [])
    assert_same(found, read_whole(file))
    assert len(found["train/loss"][0]) == 90


def test_replaced_or_truncated_file_is_read_again(tmp_path):
    file, growing = tmp_path / "metrics.jsonl", follow.GrowingMetrics()
    file.write_text('{"step": 1, "train/loss": 1}\n{"step": 2, "train/loss": 2}\n')
    growing(file, [])
    for text in ('{"step": 1, "train/loss": 5}\n', "", '{"step": 7, "train/loss": 8}\n' * 9):
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").rename(file)
        assert_same(growing(file, []), read_whole(file))
    file.write_text('{"step": 3, "train/loss": 3}\n')
    assert_same(growing(file, []), read_whole(file))
    file.unlink()
    assert growing(file, []) == {}


def test_points_of_a_long_run_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "MAX_ROWS", 100)
    file, growing = tmp_path / "metrics.jsonl", follow.GrowingMetrics()
    for start in range(0, 2000, 10):
        with open(file, "a") as opened:
            opened.writelines(f'{{"step": {start + i}, "train/loss": 1}}\n' for i in range(10))
        steps, _ = growing(file, [])["train/loss"]
        assert len(steps) <= 100
    assert (steps[0], steps[-1]) == (0, 1999)


def test_modification_times_in_the_future_hide_no_change(running, clock):
    """As of a machine whose clock is ahead: files are never compared with the local time."""
    tomorrow = time.time() + 86400

    def wind():
        for file in running.iterdir():
            os.utime(file, (tomorrow, tomorrow))

    wind()
    runs = Runs(lambda: [running], "runs", 1)
    first = seen(runs)
    assert [row["state"] for row in first["runs"]] == ["running"]
    add_line(running, 30, 0.5)
    wind()
    clock.now += 5
    later = seen(runs, first["version"])
    assert (later["runs"][0]["loss"], later["panels"][0]["last"]) == ("0.5000", 30)


def test_legend_names_differing_settings_or_else_the_folder(tmp_path):
    many = {"schedule": {"_target_": "x", "T": 7}, "weighting": {"gamma": 5}}
    folders = [
        run_folder(tmp_path / "a", [1.0], choices={"model": "dit", "objective": "v"}, **many),
        run_folder(tmp_path / "b", [1.0], choices={"model": "resunet", "data": "mnist"}),
        run_folder(tmp_path / "c", [1.0]),
        run_folder(tmp_path / "d", [1.0], seed=1),
    ]
    rows = seen(Runs(lambda: folders, "runs", 9))["runs"]
    legends = sorted(row["legend"] for row in rows)
    assert legends == ["dit", "resunet", "unet, seed 0", "unet, seed 1"]
    (full,) = [row["label"] for row in rows if row["legend"] == "dit"]
    assert "v" in full  # the table says all of it
    long = [
        run_folder(
            tmp_path / name, [1.0], init_from=f"/{'x' * 50}/{name}", overrides=["init_from=."]
        )
        for name in ("e", "f")
    ]
    rows = seen(Runs(lambda: long, "runs", 9))["runs"]
    assert sorted(row["legend"] for row in rows) == ["e", "f"]
