"""Full disks: no checkpoint is lost, and only a checkpoint that cannot be written ends a run.

Its error names the space that it needs and the newest good checkpoint; with free space `resume=`
gives the results of an uninterrupted run. Figures and pictures that do not fit are left out.
Covered are also the order in which a checkpoint comes into being (bytes, check, name, folder, and
only then the removal of older ones) and places that cannot be written to. Limits on the size of a
file stand for a full disk: the kernel cuts a write in the middle, as on a disk, and needs no root.
A power cut cannot be tried; that everything is asked to be on the disk in time can.
"""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from support.checkpoints import state
from support.crash import TINY, go, output_of, start, wait
from support.runs import assert_equal_state, files_of, losses_of, state_of, status_of

from ddpm.errors import InputError
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.safe_io import atomic
from ddpm.trackers import local

RUN = [*TINY, "output_dir=run", "job.sample_every=2"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run on a disk with free space."""
    home = tmp_path_factory.mktemp("uninterrupted")
    assert go(home, *RUN) == 0, output_of(home)
    return home / "run"


def assert_same(run, other):
    assert status_of(run) == status_of(other) == {"state": "done", "step": 6, "saved": 6}
    assert_equal_state(state_of(run, 6), state_of(other, 6))
    assert losses_of(run) == losses_of(other)
    assert files_of(run) == files_of(other)


def limit(size):
    """Limit the size of the files that this process writes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fill_disk(monkeypatch, step, size):
    """Make the disk full from the checkpoint of this step on."""
    save = checkpoint.save

    def full(folder, state, keep):
        if state["step"] == step:
            limit(size)
        return save(folder, state, keep)

    monkeypatch.setattr(checkpoint, "save", full)


# checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("missing", [pytest.param(0.9, marks=pytest.mark.slow), 1e-4])
def test_checkpoint_on_a_full_disk_ends_the_run_and_keeps_older_ones(
    missing, uninterrupted, tmp_path, monkeypatch
):
    whole = (uninterrupted / "checkpoints" / "step-0000004.pt").stat().st_size
    with monkeypatch.context() as patch:
        fill_disk(patch, 4, int((1 - missing) * whole))
        assert go(tmp_path, *RUN, "job.keep_checkpoints=2") == 2
    run = tmp_path / "run"
    status = status_of(run)
    assert (status["state"], status["step"], status["saved"]) == ("failed", 4, 2)
    assert "step-0000004.pt: the checkpoint could not be written (no space left" in status["error"]
    assert "it needs 0." in status["error"]
    assert "The newest good one is " in status["error"]
    assert status["error"].splitlines() == [status["error"]]
    assert status["error"] in output_of(tmp_path)
    assert "Traceback" not in output_of(tmp_path)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000002.pt"]
    assert_equal_state(state_of(run, 2), state_of(uninterrupted, 2))
    assert not list(run.rglob("*.tmp"))

    assert go(tmp_path, "resume=run", "job.keep_checkpoints=3") == 0, output_of(tmp_path)
    assert "steps    2 to 6" in output_of(tmp_path)
    config = {p for p in files_of(run) if p.startswith("config.until")}  # it was told to keep 2
    assert len(config) == 1
    (run / config.pop()).unlink()
    assert_same(run, uninterrupted)


@pytest.mark.slow
def test_run_whose_first_checkpoint_failed_restarts(uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fill_disk(patch, 2, 20_000)
        assert go(tmp_path, *RUN) == 2
    assert "There is no older one." in status_of(tmp_path / "run")["error"]
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert go(tmp_path, "resume=run") == 0, output_of(tmp_path)
    assert_same(tmp_path / "run", uninterrupted)


def test_checkpoint_on_a_read_only_disk_reports_the_reason(tmp_path, monkeypatch):
    def refuse(path, state):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", refuse)
        assert go(tmp_path, *RUN) == 2
    assert "the checkpoint could not be written" in status_of(tmp_path / "run")["error"]
    assert os.strerror(errno.EROFS) in output_of(tmp_path)
    assert "no space left" not in output_of(tmp_path)


def test_run_in_an_unwritable_folder_does_not_start(tmp_path):
    assert go(tmp_path, *TINY, "output_dir=/proc/run") == 2
    assert "output_dir=/proc/run: /proc cannot be written to" in output_of(tmp_path)
    assert "Traceback" not in output_of(tmp_path)


@pytest.fixture
def calls(monkeypatch):
    """The file operations in their order: (call, name of the file)."""
    calls = []

    def watch(owner, name, named):
        real = getattr(owner, name)

        def call(*arguments, **options):
            calls.append((name, named(*arguments)))
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    def of(path, *_):
        return "temporary" if str(path).endswith(".tmp") else Path(path).name

    watch(os, "fsync", lambda n: of(os.readlink(f"/proc/self/fd/{n}")))
    watch(os, "replace", lambda source, target: f"{of(source)} to {of(target)}")
    watch(Path, "unlink", of)
    watch(checkpoint, "check_archive", of)
    return calls


def test_older_checkpoint_is_removed_after_the_new_one_is_synced_and_verified(tmp_path, calls):
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        checkpoint.save(folder, state(step), keep=2)
    calls.clear()
    checkpoint.save(folder, state(3), keep=2)
    assert [call for call in calls if call != ("unlink", "temporary")] == [
        ("fsync", "temporary"),
        ("check_archive", "temporary"),
        ("replace", "temporary to step-0000003.pt"),
        ("fsync", "checkpoints"),
        ("unlink", "step-0000001.pt"),
    ]


@pytest.mark.parametrize("place", ["fsync", "check_archive", "replace"])
def test_older_checkpoints_stay_if_any_part_of_saving_fails(place, tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, state(step), keep=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint if place == "check_archive" else os, place, fail)
    with pytest.raises(InputError, match=r"could not be written \(.*Input/output error"):
        checkpoint.save(tmp_path, state(3), keep=2)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_checkpoint_that_reads_back_differently_is_not_named(tmp_path, monkeypatch):
    """A disk that silently loses what was written."""
    checkpoint.save(tmp_path, state(1), keep=2)
    real = torch.save

    def lossy(state, file):
        real(state, file)
        file.flush()
        os.pwrite(file.fileno(), bytes(64), 700)

    monkeypatch.setattr(torch, "save", lossy)
    with pytest.raises(InputError, match=r"cannot be read back.*The newest good one is .*0001\.pt"):
        checkpoint.save(tmp_path, state(2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001.pt"]


# all else


class Full:
    """A full disk for some files, from the second line of the log to the fourth, or on."""

    def __init__(self, monkeypatch, *names, until=5):
        self.names, self.until, self.lines = names, until, 0
        log = local.Local.log
        monkeypatch.setattr(local.Local, "log", lambda *x: (self.count(), log(*x))[1])
        for owner, call, at in (
            (os, "write", lambda n, _: os.readlink(f"/proc/self/fd/{n}")),
            (local, "save_png", lambda _, path: path),
            (atomic, "write", lambda path, _: path),
        ):
            self.refuse(monkeypatch, owner, call, at)

    def count(self):
        self.lines += 1

    def refuse(self, monkeypatch, owner, call, at):
        real = getattr(owner, call)

        def refused(*arguments, **options):
            path = Path(at(*arguments))
            names = (path.name, path.parent.name)
            if 1 < self.lines < self.until and set(names) & set(self.names):
                if owner is os and len(arguments[1]) > 5:  # a part of it finds room
                    return real(arguments[0], arguments[1][:5])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        monkeypatch.setattr(owner, call, refused)


FILES = ["metrics.jsonl", "samples", "loss.png", "status.json"]


@pytest.mark.parametrize("names", [FILES, ["status.json"]], ids=["all", "status"])
def test_full_disk_for_figures_and_previews_does_not_end_a_run(
    names, uninterrupted, tmp_path, monkeypatch
):
    Full(monkeypatch, *names)
    assert go(tmp_path, *RUN) == 0, output_of(tmp_path)
    warnings = [line for line in output_of(tmp_path).splitlines() if "Cannot write to" in line]
    assert len(warnings) == (names != ["status.json"])
    assert all(os.strerror(errno.ENOSPC) in line for line in warnings)
    missing = {"samples/step-000002.png", "samples/step-000004.png"} & files_of(uninterrupted)
    missing = missing if "samples" in names else set()
    for name in missing:  # pictures of a step are drawn at that step, or not at all
        assert name not in files_of(tmp_path / "run")
        (tmp_path / "run" / name).write_bytes(b"")
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_run_on_a_full_disk_still_writes_checkpoints(uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Full(patch, *FILES, until=100)
        assert go(tmp_path, *RUN) == 0, output_of(tmp_path)
    run = tmp_path / "run"
    assert output_of(tmp_path).count("Cannot write to") == 1
    assert [step for step, _ in losses_of(run)] == [1]
    assert not list(run.rglob("*.tmp"))
    assert_equal_state(state_of(run, 6), state_of(uninterrupted, 6))
    assert status_of(run)["state"] == "running"
    assert go(tmp_path, "resume=run") == 0, output_of(tmp_path)  # it makes up for what it can
    assert status_of(run) == {"state": "done", "step": 6, "saved": 6}
    assert "samples/step-000006.png" in files_of(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "changes"),
    [(0, []), (100, ["job.keep_checkpoints=2"])],
    ids=["as before", "with other settings"],
)
def test_failed_resume_on_a_full_disk_is_reported_and_changes_nothing(
    size, changes, uninterrupted, tmp_path, monkeypatch
):
    assert go(tmp_path, *RUN, crash="checkpoint.kept:2") == -9
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files_of(tmp_path / "run")}
    real = checkpoint.find

    def find(path):
        limit(size)
        return real(path)

    (tmp_path / "out.txt").unlink()
    os.mkfifo(tmp_path / "out.txt")  # the limit knows no pipes
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "find", find)
        child = start(tmp_path, "resume=run", *changes)
    words = output_of(tmp_path)
    assert wait(child) == 2, words
    (tmp_path / "out.txt").unlink()
    assert "Traceback" not in words
    assert "File too large" in words
    after = {name: (tmp_path / "run" / name).read_bytes() for name in before}
    for name in ("run.lock", "status.json"):
        del before[name], after[name]
    assert after == before
    assert go(tmp_path, "resume=run") == 0, output_of(tmp_path)
    assert_same(tmp_path / "run", uninterrupted)
