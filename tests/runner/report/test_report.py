"""The report: reading runs, settings that differ, statistics, and output files."""

import base64
import csv
import hashlib
import html.parser
import io
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import groupby
from urllib.parse import unquote

import pytest
from PIL import Image
from support.base import ROOT
from support.report_folders import picture, run_folder

from ddpm.errors import InputError
from ddpm.runner import report
from ddpm.runner.report import commands, comparison, csv_file, grids, markdown, stats, tables
from ddpm.runner.report.run_record import read
from ddpm.runner.runs import run_dir

EVIL = "<script>alert(1)</script>"


def made(*folders, title="study"):
    return comparison.make([read(folder) for folder in folders], title)


# Reading


def test_run_folder_is_read(tmp_path):
    folder = run_folder(tmp_path / "a", [4.0, None, 2.0, 1.0], steps=(20, 40), seed=7)
    run = read(folder)
    assert (run.state, run.step, run.total, run.seconds, run.seed) == ("done", 40, 40, 60, 7)
    steps, losses = run.metrics["train/loss"]
    assert (steps.tolist(), losses.tolist()) == ([10, 30, 40], [4, 2, 1])
    assert list(run.pictures) == [20, 40]
    assert run.problems == ()


def test_non_finite_values_and_damaged_lines_are_left_out(tmp_path):
    folder = run_folder(tmp_path / "a", rows=[])
    lines = ['{"step": 1, "train/loss": NaN}', '{"step": 2, "train/loss": Infinity}', "[" * 9999]
    lines += ['{"step": 3, "train/loss": "x"}', '{"step": true, "train/loss": 1}', '{"step": 4,']
    lines += [f'{{"step": 5, "train/loss": {10**400}}}', '{"step": 6, "train/loss": 0.5}']
    lines += ['{"step": 6, "train/loss": 0.25}']  # a resumed run, before its file is mended
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    steps, losses = read(folder).metrics["train/loss"]
    assert (steps.tolist(), losses.tolist()) == ([6], [0.25])


@pytest.mark.parametrize(
    ("files", "state", "problem"),
    [
        ({"config.yaml": "a: [1"}, "waiting", "config.yaml is damaged"),
        ({"config.yaml": "a: 1"}, "waiting", "config.yaml is not the configuration of a run"),
        ({"status.json": '{"state": "failed", "error": "no"}'}, "failed", None),
        ({"status.json": '{"state": "dancing"}'}, "unknown", None),
        ({"status.json": '{"state"'}, "waiting", "status.json is damaged"),
        ({"status.json": '{"state": "running"}'}, "killed", None),
    ],
)
def test_damaged_and_unfinished_runs_are_read_as_far_as_possible(tmp_path, files, state, problem):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    run = read(tmp_path)
    assert run.state == state
    assert [line for line in run.problems if problem and problem in line] or not problem
    assert report.write([tmp_path], tmp_path / "out", "one")


def test_locked_run_is_running_and_an_unlocked_one_killed(tmp_path):
    folder = run_folder(tmp_path / "a", [1.0], status={"state": "running"})
    with run_dir.lock(folder):
        assert read(folder).state == "running"
    assert read(folder).state == "killed"


def test_named_pipes_do_not_block_reading(tmp_path):
    folder = run_folder(tmp_path / "a", [1.0])
    for name in ("metrics.jsonl", "about.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    assert len(read(folder).problems) == 2


def test_missing_runs_and_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no runs"):
        report.write([], tmp_path / "out", "none")
    with pytest.raises(InputError, match="is not the folder of a run"):
        report.write([tmp_path], tmp_path / "out", "none")
    assert not (tmp_path / "out").exists()


# Settings that differ


def test_keys_that_follow_from_a_group_choice_are_not_listed(tmp_path):
    wide = {"model": {"widths": [64, 128]}, "choices": {"model": "convnet", "size": "convnet_x"}}
    compared = made(run_folder(tmp_path / "a"), run_folder(tmp_path / "b", seed=1, **wide))
    assert compared.keys == ["model"]
    assert [s.label for s in compared.settings] == ["unet", "convnet"]


def test_overridden_key_is_listed_beside_a_group_choice(tmp_path):
    other = {"choices": {"model": "convnet"}, "optimizer": {"lr": 1e-5}}
    given = made(
        run_folder(tmp_path / "a"),
        run_folder(tmp_path / "b", overrides=["model=convnet", "optimizer.lr=1e-5"], **other),
    )
    assert given.keys == ["model", "optimizer.lr"]
    assert [s.label for s in given.settings] == [
        "unet, optimizer.lr=0.002",
        "convnet, optimizer.lr=1e-5",
    ]
    assert made(tmp_path / "a", run_folder(tmp_path / "c", **other)).keys == ["model"]


def test_group_without_a_choice_is_named_in_the_label(tmp_path):
    some = {"choices": {"model": "unet", "experiment": "laptop"}}
    none = {"choices": {"model": "unet", "experiment": None}}
    compared = made(run_folder(tmp_path / "a", **some), run_folder(tmp_path / "b", **none))
    assert [s.label for s in compared.settings] == ["laptop", "experiment=null"]


def test_differing_key_without_override_or_choice_is_listed(tmp_path):
    changed = {"job": {"batch_size": 16}, "diffusion": {"betas": {"T": 10}}}
    compared = made(run_folder(tmp_path / "a"), run_folder(tmp_path / "b", **changed))
    assert compared.keys == ["job.batch_size"]


def test_keys_that_follow_from_an_overridden_key_are_not_listed(tmp_path):
    folders = [
        run_folder(
            tmp_path / str(flag),
            overrides=[f"data.conditional={flag}".lower()],
            data={"conditional": flag},
            model={"num_classes": 11 if flag else None},
        )
        for flag in (False, True)
    ]
    assert made(*folders).keys == ["data.conditional"]


def test_seeds_form_one_setting_and_repeated_seeds_are_noted(tmp_path):
    folders = [
        run_folder(tmp_path / str(i), [1.0 + i], seed=s, source={"step": i})
        for i, s in enumerate((1, 2, 2))
    ]
    (setting,) = made(*folders).settings
    assert setting.statistics["loss"].n == 3
    assert setting.notes == ["seed 2 more than once, and each run counts"]
    assert setting.label == "unet on digits"


def test_runs_of_equal_configuration_and_seed_count_once(tmp_path):
    """The first that is done counts; where it is kept and how it is tracked does not matter."""
    failed = {"state": "failed", "error": "why"}
    run_folder(tmp_path / "a", [9.0], seed=1, status=failed)
    run_folder(tmp_path / "b", [1.0], seed=1, tracker={"wandb": {"name": "b"}})
    run_folder(tmp_path / "c", [5.0], seed=1, overrides=["seed=1"])
    (setting,) = made(*(tmp_path / name for name in "abc")).settings
    found = setting.statistics["loss"]
    assert (found.mean, found.half, found.n) == (1.0, None, 1)
    assert (len(setting.distinct), setting.done) == (1, 1)
    (note,) = setting.notes
    assert note.startswith("2 of 3 runs")


# Statistics


def test_interval_over_three_seeds(tmp_path):
    losses = (0.1, 0.2, 0.6)
    folders = [run_folder(tmp_path / str(i), [9.0] * 9 + [x], seed=i) for i, x in enumerate(losses)]
    (setting,) = made(*folders).settings
    found = setting.statistics["loss"]  # of the last tenth
    assert found.mean == pytest.approx(0.3)
    assert found.half == pytest.approx(4.302653 * 0.07**0.5 / 3**0.5)
    assert stats.with_interval(found.mean, found.half) == ("0.30", "± 0.66")


def test_one_run_has_no_interval(tmp_path):
    folder = run_folder(tmp_path / "a", [0.5])
    (row,) = tables.of_settings(made(folder)).rows
    assert ("0.5000", "") in [(cell.text, cell.interval) for cell in row.cells]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.12345, "0.1235"), (1234.5, "1,234"), (0, "0"), (1e-5, "1e-05"), (None, "\u2013")),
        *((-2.5, "-2.500"), (123456.0, "123,456"), (1e12, "1e+12"), (9.99999, "10.000")),
    ],
)
def test_numbers_are_rounded_to_four_digits(value, text):
    assert stats.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (7.74, "7.7 s"),
        (59.97, "1 min 00 s"),
        (100, "1 min 40 s"),
        (7380, "2 h 03 min"),
        (3e5, "3 d 11 h"),
    ],
)
def test_durations_are_given_in_two_units(seconds, text):
    assert stats.duration(seconds) == text


def test_only_runs_that_are_done_are_averaged(tmp_path):
    run_folder(tmp_path / "a", [1.0], seed=1)
    run_folder(tmp_path / "b", [5.0], seed=2, status={"state": "failed", "error": "why"})
    lr = {"overrides": ["optimizer.lr=1"], "optimizer": {"lr": 1}}
    run_folder(tmp_path / "c", [0.1], status={"state": "preempted"}, **lr)
    one, other = made(tmp_path / "a", tmp_path / "b", tmp_path / "c").settings
    assert (one.statistics["loss"].mean, one.statistics["loss"].n) == (1.0, 1)
    assert other.statistics["loss"].so_far
    assert not other.statistics["loss"].best  # nor is the only one that is done
    assert not one.statistics["loss"].best


def test_best_is_marked_only_among_comparable_losses(tmp_path):
    for name, objective, lr, loss in (
        *(("a", "eps", 1, 0.3), ("b", "eps", 2, 0.2)),
        *(("c", "v", 1, 0.1), ("d", "v", 2, 0.05)),
    ):
        rows = [{"step": 10, "train/loss": loss, "eval/accuracy": loss, "eval/what": 1.0}]
        words = [f"objective={objective}", f"optimizer.lr={lr}"]
        run_folder(
            tmp_path / name,
            rows=rows,
            overrides=words,
            choices={"objective": objective},
            optimizer={"lr": lr},
        )
    compared = made(*(tmp_path / name for name in "abcd"))

    def best(measure):
        return [s.number for s in compared.settings if s.statistics[measure].best]

    assert best("loss") == [1, 3]
    assert best("eval/accuracy") == [0]
    assert best("eval/what") == []  # its better direction is unknown
    assert any("not comparable" in note for note in compared.notes)


def settings_of(tmp_path, losses):
    """The comparison of settings of the learning rate, with a loss for each seed."""
    folders = [
        run_folder(
            tmp_path / f"{i}-{seed}",
            rows=[{"step": 10, "train/loss": loss, "eval/accuracy": -loss}],
            seed=seed,
            overrides=[f"optimizer.lr={i}"],
            optimizer={"lr": i},
        )
        for i, by_seed in enumerate(losses)
        for seed, loss in by_seed.items()
    ]
    return made(*folders)


def bold(compared, measure="loss"):
    return [s.number for s in compared.settings if s.statistics[measure].bold]


def test_differences_from_the_best_are_paired_over_common_seeds(tmp_path):
    """Seeds vary much, and all settings alike: only pairs show which differ."""
    compared = settings_of(
        tmp_path,
        [
            {1: 0.2, 2: 0.4, 3: 0.9},
            {1: 0.23, 2: 0.38, 3: 0.92},
            {1: 0.3, 2: 0.5, 3: 1.01, 4: 0.6},
            {1: 9.0},
        ],
    )
    best, tied, worse, single = (s.statistics["loss"] for s in compared.settings)
    assert (best.best, best.from_best, single.from_best) == (True, None, None)
    assert tied.from_best.mean == pytest.approx(0.01)
    assert tied.from_best.half == pytest.approx(4.302653 * 0.0007**0.5 / 3**0.5)
    assert (worse.from_best.mean, worse.from_best.n) == (pytest.approx(0.31 / 3), 3)
    assert bold(compared) == [0, 1]
    assert bold(compared, "eval/accuracy") == [0, 1]  # where larger is better


def test_a_best_mean_that_differs_from_all_others_alone_is_bold(tmp_path):
    compared = settings_of(tmp_path, [{1: 0.1, 2: 0.5}, {1: 0.2, 2: 0.64}])
    assert bold(compared) == [0, 1]  # two pairs: the factor is 12.7
    many = {s: 0.1 * s for s in range(1, 6)}
    more = {s: 0.1 * s + 0.01 + 0.001 * (s % 2) for s in many}
    assert bold(settings_of(tmp_path / "many", [many, more])) == [0]


def test_no_mean_is_bold_without_common_seeds(tmp_path):
    compared = settings_of(tmp_path, [{1: 0.1}, {1: 0.2}])
    assert [s.statistics["loss"].best for s in compared.settings] == [True, False]
    assert bold(compared) == []
    assert tables.of_differences(compared).rows == []
    assert tables.bold_line(compared) == tables.NONE_BOLD
    assert not any(cell.bold for row in tables.of_settings(compared).rows for cell in row.cells)


def test_differences_are_in_all_files_of_the_report(tmp_path):
    compared = settings_of(tmp_path, [{1: 0.1, 2: 0.5}, {1: 0.2, 2: 0.62}])
    report.write([run.folder for run in compared.runs], tmp_path / "out", "t")
    html_text, markdown_text = (
        (tmp_path / "out" / name).read_text() for name in ("report.html", "report.md")
    )
    for text in (html_text, markdown_text):
        assert "+0.11" in text
        assert "± 0.13 (n = 2)" in text
    rows = list(csv.DictReader(io.StringIO(csv_file.table(compared))))
    assert [row["final_loss - best"] for row in rows[:2]] == ["", ""]
    assert float(rows[2]["final_loss - best"]) == pytest.approx(0.11)
    assert float(rows[3]["final_loss - best, half of 95 %"]) == pytest.approx(12.7062 * 0.01)
    assert rows[3]["final_loss - best, common seeds"] == "2"


def test_runs_of_different_jobs_share_one_report(tmp_path):
    run_folder(tmp_path / "a", [1.0], steps=(10,))
    sampling = {"choices": {"job": "sample"}, "job": {"num_samples": 4}, "checkpoint": "runs/a"}
    folder = run_folder(tmp_path / "b", overrides=["job=sample", "checkpoint=runs/a"], **sampling)
    picture(folder / "grid.png")
    compared = made(tmp_path / "a", folder)
    assert compared.keys == ["job", "checkpoint"]
    assert [g.title for g in grids.groups(compared)] == ["Seed 0", "Drawn by job=sample"]


# Output files


class Page(html.parser.HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def hostile(tmp_path):
    """A report of runs whose every text is hostile: (page, output)."""
    word = f"model.name={EVIL}|`x`\n\"quoted\" 'twice' é ../${{x}}"
    for name, text in ((EVIL.replace("/", "_"), word), ("b|b", "model.name=b")):
        run_folder(
            tmp_path / name,
            [0.5, 0.25],
            steps=(10,),
            overrides=[text, "tracker=local"],
            model={"name": text.partition("=")[2]},
            status={"state": "failed", "error": f"{EVIL} | `"},
            code={"commit": EVIL, "dirty": True},
        )
    folders = sorted(tmp_path.iterdir())
    report.write(folders, tmp_path / "out", f"{EVIL} & more")
    return (tmp_path / "out" / "report.html").read_text(), tmp_path / "out"


def test_hostile_texts_are_escaped_in_html(hostile):
    text, _ = hostile
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert EVIL in "".join(page.texts)
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]


def test_html_page_loads_no_external_resources(hostile):
    text, _ = hostile
    page = Page(text)
    for tag, attrs in page.tags:
        assert attrs.get("src", "data:image/").startswith("data:image/"), tag
        assert not re.match(r"[\w+.-]*:|//", attrs.get("href", ""))
    assert "@import" not in text
    assert "url(" not in text
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    script = text.partition("<script>")[2].rpartition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_links_lead_to_the_run_folders(hostile):
    text, output = hostile
    links = [a["href"] for t, a in Page(text).tags if t == "a"]
    assert links
    assert all((output / unquote(link)).is_dir() for link in links)


def test_hostile_texts_do_not_break_markdown_tables(hostile):
    _, output = hostile
    text = (output / "report.md").read_text()
    lines = re.sub(r"(?ms)^(`{3,})sh$.*?^\1$", "", text).splitlines()
    bare = [re.sub(r"\\.", "", line) for line in lines]
    assert not [line for line in bare if "<script" in line]
    tables_ = [list(rows) for inside, rows in groupby(bare, lambda x: x[:1] == "|") if inside]
    assert len(tables_) >= 3
    for rows in tables_:
        assert len({row.count("|") for row in rows}) == 1, rows


def test_csv_can_be_read_back(tmp_path):
    run_folder(tmp_path / "a", [1 / 3], overrides=["model.name==1+1", "x"], model={"name": "=1+1"})
    run_folder(tmp_path / "b", [0.5], overrides=["model.name=a,\nb"], model={"name": "a,\nb"})
    rows = list(csv.DictReader(io.StringIO(csv_file.table(made(tmp_path / "a", tmp_path / "b")))))
    assert [row["final_loss"] for row in rows] == [repr(1 / 3), "0.5"]
    assert [row["model.name"] for row in rows] == ["'=1+1", "a,\nb"]
    assert [row["setting"] for row in rows] == ["0", "1"]
    assert rows[0]["parameters"] == "54785.0"


def test_commands_can_be_pasted_into_a_shell(tmp_path):
    words = ["model=unet", "job.labels=[1, 2]", "x='a \"b\" $HOME é\nz'"]
    left_out = ["output_dir=old", "resume=old", "+hydra.callbacks.x._target_=os.system"]
    left_out += ["--config-dir=evil", "hydra/launcher=x"]
    folder = run_folder(tmp_path / "a b", [1.0], overrides=[*words, *left_out])
    run = read(folder)
    again = commands.again(run)
    assert again.isprintable()
    asked = subprocess.run(["bash", "-c", f"printf '%s|' {again}"], capture_output=True, text=True)
    assert asked.stdout.split("|")[:-1] == ["python", "run.py", *words]
    assert commands.sample(run) is None
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-0000100.pt").touch()
    assert shlex.split(commands.sample(run))[2:] == ["job=sample", f'checkpoint="{folder}"']


def test_a_folder_that_is_named_twice_counts_once(tmp_path, monkeypatch):
    run_folder(tmp_path / "a", [1.0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("a")
    folders = [tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path / "link"]
    (tmp_path / "b").mkdir()
    report.write(folders, tmp_path / "out", "once")
    assert len((tmp_path / "out" / "report.csv").read_text().splitlines()) == 2


def test_folders_with_equal_names_get_distinct_labels(tmp_path):
    folders = [run_folder(tmp_path / sweep / "0-unet", [1.0]) for sweep in ("one", "two")]
    assert list(made(*folders).names.values()) == ["one/0-unet", "two/0-unet"]


def test_report_of_waiting_runs_is_written(tmp_path):
    for i in range(3):
        run_folder(tmp_path / str(i), seed=i, status=False)
    files = report.write([tmp_path / str(i) for i in range(3)], tmp_path / "out", "soon")
    assert [file.name for file in files] == ["report.html", "report.md", "report.csv"]
    assert "3 waiting" in files[0].read_text()


def test_failed_write_keeps_the_old_report(tmp_path, monkeypatch):
    run_folder(tmp_path / "a", [1.0])
    report.write([tmp_path / "a"], tmp_path / "out", "old")
    before = (tmp_path / "out" / "report.html").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="No space left"):
        report.write([tmp_path / "a"], tmp_path / "out", "new")
    assert (tmp_path / "out" / "report.html").read_bytes() == before
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_report_and_status_do_not_import_torch(tmp_path):
    run_folder(tmp_path / "a", [1.0, 0.5], steps=(10,))
    code = (
        "import sys; from pathlib import Path; from ddpm.runner import report; "
        "from ddpm.runner.report import status; "
        "report.write([Path('a')], Path('out'), 't'); status.table([Path('a')]); "
        "print({'torch', 'hydra', 'matplotlib', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "set()\n", done.stderr


def test_printed_commands_repeat_a_run_and_sample_from_it(tiny, run, tmp_path):
    report.write([tiny], tmp_path / "out", "one")
    with open(tmp_path / "out" / "report.csv") as file:
        (row,) = csv.DictReader(file)
    status, out, _ = run(*shlex.split(row["again"])[2:], "output_dir=again")
    assert status == 0, out
    assert _losses(tmp_path / "again") == _losses(tiny)
    status, out, _ = run(*shlex.split(row["sample"])[2:], "tracker=local", "job.num_samples=2")
    assert status == 0, out
    again = made(tiny, tmp_path / "again")
    assert (again.keys, len(again.settings)) == ([], 1)


def _losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["train/loss"]) for row in map(json.loads, lines)]


# Pictures


def test_previews_are_compared_at_the_same_step(tmp_path):
    run_folder(tmp_path / "a", [1.0], steps=(500, 1000, 1500))
    run_folder(tmp_path / "b", [1.0], steps=(500, 1000), seed=1)
    failed = {"state": "failed"}
    run_folder(tmp_path / "c", [1.0], steps=(500,), seed=1, status=failed)
    first, second = grids.groups(made(*(tmp_path / name for name in "abc")))
    assert [grid.step for grid in first.grids] == [1000]
    assert [grid.step for grid in second.grids] == [1000, 500]


def test_run_with_a_damaged_config_has_an_unknown_seed(tmp_path):
    folder = run_folder(tmp_path / "a", [1.0], steps=(10,))
    (folder / "config.yaml").write_text("a: [")
    (group,) = grids.groups(made(folder))
    assert group.title == "Seed unknown"


def test_enlarged_previews_are_embedded_at_one_pixel_per_square(tmp_path):
    folder = run_folder(tmp_path / "a", [1.0], steps=(10,))
    ((group,), problems) = grids.embedded(grids.groups(made(folder)))
    (grid,) = group.grids
    assert (grid.width, grid.height, problems) == (24, 16, [])
    data = base64.b64decode(grid.data.partition(",")[2])
    small = Image.open(io.BytesIO(data))
    large = Image.open(folder / "samples" / "step-000010.png")
    assert small.resize(large.size, Image.Resampling.NEAREST).tobytes() == large.tobytes()


def test_embedded_images_are_shrunk_to_a_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "BUDGET", 60_000)
    for i in range(3):
        folder = run_folder(tmp_path / str(i), [1.0], seed=i)
        picture(folder / "samples" / "step-000010.png", (300, 200), scale=1)
    found = grids.groups(made(*(tmp_path / str(i) for i in range(3))))
    groups, _ = grids.embedded(found)
    sizes = [len(grid.data) * 3 / 4 for group in groups for grid in group.grids]
    assert len(sizes) == 3
    assert sum(sizes) < 61_000


def test_a_damaged_picture_is_named_and_left_out(tmp_path):
    folder = run_folder(tmp_path / "a", [1.0], steps=(10,))
    file = folder / "samples" / "step-000010.png"
    file.write_bytes(file.read_bytes()[:200])
    groups, (problem,) = grids.embedded(grids.groups(made(folder)))
    assert groups == []
    assert problem.startswith("a: step-000010.png cannot be read")


def test_markdown_special_characters_are_escaped():
    assert markdown.plain("a|b\nc <i> `d` [e](f) é") == "a\\|b c \\<i\\> \\`d\\` \\[e\\](f) é"
