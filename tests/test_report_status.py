"""How a sweep stands: states, what differs, what is left, and no file read twice."""

import pytest
from report_parts import run_folder

from ddpm import run_dir
from ddpm.report import status


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


def test_a_line_for_each_job(sweep):
    lines = status.table(sweep, 200).splitlines()
    assert lines[0].split() == ["job", "overrides", "step", "loss", "images/s", "left", "state"]
    assert [line.split()[1] for line in lines[1:6]] == [f"optimizer.lr={i}" for i in range(5)]
    assert lines[1].split()[2:] == ["20/20", "0.5000", "100", "\u2013", "done"]
    assert lines[2].endswith("killed")
    assert "failed: optimizer.lr=-1: must be above 0.\\n" in lines[3]
    assert lines[-1] == "1 done, 1 failed, 1 killed, 1 preempted, 1 waiting"


def test_the_time_that_is_left(sweep):
    with run_dir.lock(sweep[1]):
        job = status.read(sweep[1])
        assert job.state == "running"
        assert job.left == pytest.approx(50 * 8 / 100)  # steps x batch / images per second
        # 4 s, and the one that waits: the mean of 60 s (done) and 29 s (running), one at a time
        assert status.time_left([status.read(path) for path in sweep]) == pytest.approx(48.5)
        assert status.table(sweep, 200).endswith("1 waiting; about 48 s left")


def test_without_a_speed_the_seconds_so_far_tell(tmp_path):
    state = {"state": "running", "step": 50, "total": 100, "seconds": 25.0}
    folder = run_folder(tmp_path / "a", status=state)
    with run_dir.lock(folder):
        assert status.read(folder).left == pytest.approx(25)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_it_fits_the_terminal(sweep, width):
    lines = status.table(sweep, width).splitlines()[:-2]
    assert max(map(len, lines)) <= max(width, 76)
    assert len({line.index("state") for line in lines[:1]}) == 1
    column = lines[0].index("state")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_a_file_that_has_not_changed_is_not_read_again(sweep, monkeypatch):
    status.table(sweep, 80)

    def fail(*_):
        raise AssertionError("read again")

    for name in ("read_yaml", "read_tail", "read_object"):
        monkeypatch.setattr(status, name, fail)
    status.table(sweep, 80)
    monkeypatch.undo()
    run_dir.write_status(sweep[4], "pruned", 10, total=100)
    assert status.read(sweep[4]).state == "pruned"


def test_damaged_and_missing_folders_are_jobs_too(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.yaml").write_text("a: [")
    (folder / "status.json").write_text("{")
    (folder / "metrics.jsonl").write_text("{")
    text = status.table([folder, tmp_path / "nowhere"], 80)
    assert text.endswith("2 waiting")
