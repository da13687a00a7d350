"""The status of a sweep: states, overrides that differ, time left, no file read twice."""

import pytest
from support.report_folders import run_folder

from ddpm.runner import report
from ddpm.runner.report import status
from ddpm.runner.runs import run_dir
from ddpm.runner.runs.metrics_log import parse


@pytest.fixture
def sweep(tmp_path):
    """Five jobs: done, killed, failed, preempted, waiting."""
    common = "tracker=local"
    states = [
        {},
        {"state": "running", "step": 50, "total": 100, "seconds": 25.0},
        {"state": "failed", "error": "optimizer.lr=-1: must be above 0.\n" * 9},
        {"state": "preempted", "step": 30, "total": 100},
        False,
    ]
    return [
        run_folder(
            tmp_path / f"{i}-unet",
            [1.0, 0.5],
            overrides=[common, f"optimizer.lr={i}", f"output_dir=runs/{i}"],
            status=state,
            seed=i,
        )
        for i, state in enumerate(states)
    ]


def test_table_has_one_line_per_job(sweep):
    lines = status.table(sweep, 200).splitlines()
    assert lines[0].split() == ["job", "overrides", "step", "loss", "images/s", "left", "state"]
    assert [line.split()[1] for line in lines[1:6]] == [f"optimizer.lr={i}" for i in range(5)]
    assert lines[1].split()[2:] == ["20/20", "0.5000", "100", "\u2013", "done"]
    assert lines[2].endswith("killed")
    assert "failed: optimizer.lr=-1: must be above 0.\\n" in lines[3]
    assert lines[-1] == "1 done, 1 failed, 1 killed, 1 preempted, 1 waiting"


def test_time_left_is_estimated_from_the_speed(sweep):
    with run_dir.lock(sweep[1]):
        job = status.read(sweep[1])
        assert job.state == "running"
        assert job.left == pytest.approx(50 * 8 / 100)  # steps x batch / images per second
        # 4 s, and the one that waits: the mean of 60 s (done) and 29 s (running), one at a time
        assert status.time_left([status.read(path) for path in sweep]) == pytest.approx(48.5)
        assert status.table(sweep, 200).endswith("1 waiting; about 48 s left")


def test_time_left_without_a_speed_uses_the_elapsed_seconds(tmp_path):
    state = {"state": "running", "step": 50, "total": 100, "seconds": 25.0}
    folder = run_folder(tmp_path / "a", status=state)
    with run_dir.lock(folder):
        assert status.read(folder).left == pytest.approx(25)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_table_fits_the_terminal_width(sweep, width):
    lines = status.table(sweep, width).splitlines()[:-2]
    assert max(map(len, lines)) <= max(width, 76)
    assert len({line.index("state") for line in lines[:1]}) == 1
    column = lines[0].index("state")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_unchanged_files_are_not_read_again(sweep, monkeypatch):
    status.table(sweep, 80)

    def fail(*_):
        raise AssertionError("read again")

    for name in ("read_yaml", "read_tail", "read_object"):
        monkeypatch.setattr(status, name, fail)
    status.table(sweep, 80)
    monkeypatch.undo()
    run_dir.write_status(sweep[4], "pruned", 10, total=100)
    assert status.read(sweep[4]).state == "pruned"


def test_damaged_and_missing_folders_are_listed_as_jobs(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.yaml").write_text("a: [")
    (folder / "status.json").write_text("{")
    (folder / "metrics.jsonl").write_text("{")
    text = status.table([folder, tmp_path / "nowhere"], 80)
    assert text.endswith("2 waiting")


def test_time_left_without_elapsed_seconds_uses_the_speed(tmp_path):
    state = {"state": "running", "step": 50, "total": 100, "seconds": None}
    folders = [run_folder(tmp_path / "a", [1.0], status=state)]
    folders.append(run_folder(tmp_path / "b", status=False))
    with run_dir.lock(folders[0]):
        jobs = [status.read(folder) for folder in folders]
    assert [(job.left, job.whole) for job in jobs] == [(4, 8), (None, None)]
    assert status.time_left(jobs) == pytest.approx(12)


DAMAGED = [
    *('{"state": null}', '{"state": ["a"]}', '{"state": {}, "step": "x", "words": 3}', "[]"),
    '{"state": "done", "step": true, "total": NaN, "seconds": "1", "saved": [], "error": 5}',
    f'{{"state": "running", "step": 1e-300, "total": {10**400}, "seconds": 1e308}}',
    '{"state": "running", "step": -1, "total": Infinity, "seconds": -Infinity}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_status_does_not_break_status_and_report(tmp_path, text):
    rows = ['"x"', "[1]", "1e308", "-1e308", str(10**400), "1e-320", "NaN", "{}", "1e200", "true"]
    folder = run_folder(tmp_path / "a", job={"batch_size": 10**400})
    lines = [f'{{"step": {i}, "train/loss": {row}}}\n' for i, row in enumerate(rows)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "status.json").write_text(text)
    with run_dir.lock(folder):
        assert status.table([folder], 80)
        assert report.write([folder], tmp_path / "out", "one")
    run_status = run_dir.read_status(folder)
    assert run_status.get("state", "done") in run_dir.STATES
    assert all(
        isinstance(run_status.get(name, 0), int | float) for name in ("step", "total", "seconds")
    )
    assert set(run_status) <= {"state", "step", "total", "seconds"}


def test_valid_status_is_read_back_unchanged(tmp_path):
    more = {"total": 9, "saved": 2, "seconds": 1.5, "error": "x", "words": ["a=1"]}
    run_dir.write_status(tmp_path, "failed", 3, **more)
    assert run_dir.read_status(tmp_path) == {"state": "failed", "step": 3, **more}


def test_metrics_rows_keep_only_numbers():
    lines = [b'{"step": 1, "a": "x", "b": [1], "c": true, "d": null, "e": 2, "f": 0.5}']
    lines += [b'{"step": 2, "a": %d}' % 10**400, b'{"step": %d}' % 10**400, b'{"step": "3"}']
    assert parse(lines) == [{"step": 1, "d": None, "e": 2, "f": 0.5}, {"step": 2}]
