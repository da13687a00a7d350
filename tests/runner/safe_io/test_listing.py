"""A folder that cannot be listed is nowhere treated as an empty one."""

import ast
import errno
import os
from pathlib import Path

import pytest
from support.base import ROOT
from support.report_folders import run_folder

from ddpm.data.pets import Pets
from ddpm.errors import InputError
from ddpm.runner import own_folder, report
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.config import catalog, explain, output_dir
from ddpm.runner.config.request import Request
from ddpm.runner.execution import outputs
from ddpm.runner.execution.execute import execute
from ddpm.runner.execution.shadowed_modules import check_shadowed_modules
from ddpm.runner.report import commands, run_record, status
from ddpm.runner.runs import previews, run_dir
from ddpm.runner.safe_io import file_locks, listing
from ddpm.runner.sweeps import folder
from ddpm.trackers.multi import Trackers
from ddpm.trackers.wandb_client import download, history

CODES = [errno.ESTALE, errno.EACCES, errno.EIO, errno.ENFILE]


@pytest.fixture
def refuse(monkeypatch):
    """Make the listing of a folder fail, and with `stat` that of the files in it."""

    def start(path, code=errno.ESTALE, *, stat=False):
        path = os.path.realpath(path)
        scandir, look = os.scandir, os.stat

        def fails(name):
            return OSError(code, os.strerror(code), str(name))

        def failing_scandir(name="."):
            if os.path.realpath(name) == path:
                raise fails(name)
            return scandir(name)

        def failing_stat(name, **options):
            if isinstance(name, str | Path) and str(name).startswith(f"{path}{os.sep}"):
                raise fails(name)
            return look(name, **options)

        monkeypatch.setattr(os, "scandir", failing_scandir)
        if stat:
            monkeypatch.setattr(os, "stat", failing_stat)

    return start


# -- the helper -----------------------------------------------------------------------------------


def test_paths_match_patterns_case_sensitively_in_sorted_order(tmp_path):
    for name in ("b.png", "a.png", "A.PNG", ".c.png", "d.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in listing.paths(tmp_path, "*.png")] == [".c.png", "a.png", "b.png"]
    assert listing.paths(tmp_path, "*.png")[1] == tmp_path / "a.png"
    assert len(listing.entries(tmp_path)) == 5


def test_missing_folders_are_empty_unless_needed(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("nothing", "file", "loop", "dangling", "file/deeper"):
        assert listing.entries(tmp_path / name) == []
        assert listing.exists(tmp_path / name) is (name == "file")
        with pytest.raises(listing.Unreachable, match=name):
            listing.entries(tmp_path / name, needed=True)


@pytest.mark.parametrize("code", CODES)
def test_unlistable_folder_is_named_with_the_reason(tmp_path, refuse, code):
    refuse(tmp_path, code, stat=True)
    message = f"{tmp_path}.*{os.strerror(code)}"
    with pytest.raises(listing.Unreachable, match=message):
        listing.paths(tmp_path)
    with pytest.raises(listing.Unreachable, match=message):
        listing.below(tmp_path, "*")
    with pytest.raises(listing.Unreachable, match=message):
        listing.exists(tmp_path / "x")


def test_interrupted_listing_raises(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    scandir = os.scandir

    class Breaking:
        def __init__(self, path):
            self.inner = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

        def __iter__(self):
            yield next(self.inner)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", Breaking)
    with pytest.raises(listing.Unreachable, match="Input/output error"):
        listing.paths(tmp_path)


def test_below_lists_recursively_without_following_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "back").symlink_to("..")
    for name in ("z.yaml", "a/y.yaml", "a/b/x.yaml"):
        (tmp_path / name).touch()
    assert listing.below(tmp_path, "*.yaml") == sorted(tmp_path.rglob("*.yaml"))


def test_no_code_uses_glob_or_walk():
    """They silently skip folders that cannot be listed; `iterdir` raises."""
    names = {"glob", "rglob", "iglob", "walk", "fwalk"}
    found = []
    for path in (ROOT / "ddpm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            tree = called and isinstance(node.func.value, ast.Name) and node.func.value.id == "ast"
            if called and not tree and node.func.attr in names:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


# -- callers --------------------------------------------------------------------------------------


def raises(call, path):
    """The call raises an error that names the folder and the reason."""
    with pytest.raises(InputError) as caught:
        call()
    assert str(path) in str(caught.value)
    assert "Stale file handle" in str(caught.value)


def sweep_folder(path):
    return folder.SweepFolder(path, lambda number, choices=None: f"{number}-job")


def enter_and_leave(context):
    with context:
        pass


WALKS = {
    "checkpoints": lambda path: checkpoint.list_checkpoints(path),
    "previews": lambda path: previews.by_step(path.parent, path.name),
    "downloads": lambda path: download._checkpoints(path),
    "jobs of a sweep": lambda path: folder.job_folders(path),
    "a sweep that begins": lambda path: enter_and_leave(sweep_folder(path)),
    "runs to go on with": lambda path: output_dir._unfinished(path, {}),
    "options": lambda path: catalog.yaml_files(path),
    "photographs of pets": lambda path: Pets(
        **{"data_dir": path.parent.parent, "split": "train", "channels": 3, "image_size": 8},
        **{"num_classes": None, "resize_mode": "crop", "background": 0, "flip": False},
    ).files("train"),
}


@pytest.mark.parametrize("name", WALKS)
def test_callers_that_need_the_listing_refuse(tmp_path, refuse, name):
    path = tmp_path / "oxford-iiit-pet" / "images"
    path.mkdir(parents=True)
    WALKS[name](path)
    refuse(path)
    raises(lambda: WALKS[name](path), path)


def test_newest_checkpoint_is_not_guessed_after_a_failed_listing(tmp_path, refuse):
    """A run would start again, or resume from an older one."""
    (tmp_path / "checkpoints").mkdir()
    refuse(tmp_path / "checkpoints")
    raises(lambda: checkpoint.find(tmp_path), tmp_path / "checkpoints")


def test_unlistable_samples_folder_is_not_treated_as_empty(tmp_path, refuse):
    (tmp_path / "run" / "samples").mkdir(parents=True)
    config = {"kind": "draws", "output_dir": str(tmp_path / "run")}
    request = Request({}, [], [], [], None, "")
    assert output_dir.choose(config, {}, request, None).path == tmp_path / "run"
    refuse(tmp_path / "run" / "samples")
    raises(lambda: output_dir.choose(config, {}, request, None), tmp_path / "run" / "samples")


def test_unlistable_offline_parts_of_wandb_are_refused(tmp_path, refuse):
    """W&B would be given the same steps twice."""
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    assert history.in_files(tmp_path) == history.Seen()
    refuse(tmp_path / "wandb" / "offline-run-1")
    raises(lambda: history.in_files(tmp_path), tmp_path / "wandb" / "offline-run-1")


def test_job_in_an_unlistable_folder_does_not_restart(tmp_path, refuse):
    job = run_folder(tmp_path / "0-job")
    with sweep_folder(tmp_path) as sweep:
        (folders,) = sweep.unassigned.values()
        assert folders == [job]
    refuse(job, stat=True)
    raises(lambda: sweep_folder(tmp_path).__enter__(), job)


def test_job_with_an_unreadable_config_does_not_restart(tmp_path, monkeypatch):
    job = run_folder(tmp_path / "0-job")

    def fail(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(run_dir, "read_yaml", fail)
    monkeypatch.setattr(folder, "_identities", {})
    raises(lambda: sweep_folder(tmp_path).__enter__(), job / "config.yaml")
    monkeypatch.undo()
    with sweep_folder(tmp_path):  # nothing holds it
        pass


# -- runs that continue ---------------------------------------------------------------------------


def test_checkpoint_is_saved_even_if_older_ones_cannot_be_listed(
    tmp_path, monkeypatch, refuse, caplog
):
    monkeypatch.setattr(checkpoint, "_write", lambda path, state: path.touch())
    refuse(tmp_path)
    checkpoint.save(tmp_path, {"step": 7}, keep=2)
    assert (tmp_path / "step-0000007.pt").exists()
    assert f"{tmp_path}: cannot be listed (Stale file handle). Older checkpoints stay" in (
        caplog.text
    )


def test_failed_save_is_explained_even_if_the_folder_cannot_be_listed(
    tmp_path, monkeypatch, refuse
):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write", full)
    refuse(tmp_path)
    with pytest.raises(InputError, match=r"no space left.* cannot be listed \(Stale file handle"):
        checkpoint.save(tmp_path, {"step": 7}, keep=2)


@pytest.mark.parametrize("trains", [True, False])
def test_finished_run_does_not_fail_on_an_unlistable_samples_folder(
    tmp_path, refuse, caplog, trains
):
    (tmp_path / "samples").mkdir()
    refuse(tmp_path / "samples")
    outputs.offer(Trackers([]), tmp_path, 7, trains=trains)
    assert f"{tmp_path / 'samples'}: cannot be listed (Stale file handle)" in caplog.text


def test_end_of_a_run_is_printed_with_an_unlistable_samples_folder(
    tmp_path, monkeypatch, refuse, capsys
):
    from types import SimpleNamespace

    from ddpm.runner.execution import launch

    (tmp_path / "samples").mkdir()
    result = {"state": "done", "step": 7, "dir": tmp_path, "signal": None}
    monkeypatch.setattr(launch, "launch", lambda plan: result)
    refuse(tmp_path / "samples")
    config = {"kind": "trains", "choices": {"job": "train"}, "job": {}}
    execute(SimpleNamespace(config=config, name="x", trains=True, own_folder=None))
    out = capsys.readouterr().out
    assert "done     7 steps" in out
    assert f"picture  {tmp_path / 'samples'}: cannot be listed (Stale file handle)" in out


def test_run_starts_even_if_its_folder_cannot_be_cleaned(tmp_path, refuse, caplog):
    (tmp_path / ".x.tmp").touch()
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / ".y.tmp").touch()
    refuse(tmp_path / "samples")
    run_dir.clean(tmp_path)
    assert f"{tmp_path / 'samples'}: cannot be listed (Stale file handle)" in caplog.text
    assert (tmp_path / ".x.tmp").exists()


def test_clean_removes_half_written_files_down_to_one_level(tmp_path):
    for name in (".x.tmp", "samples/.y.tmp", "samples/deep/.z.tmp", "samples/y.tmp", ".dir.tmp/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    run_dir.clean(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == [".dir.tmp/a", "samples/deep/.z.tmp", "samples/y.tmp"]


# -- status and report ----------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path):
    """Three jobs that are done."""
    return [run_folder(tmp_path / f"{i}-job", [1.0, 0.5], seed=i, steps=[10]) for i in range(3)]


def test_status_names_a_job_in_an_unlistable_folder(sweep, tmp_path, refuse, monkeypatch):
    monkeypatch.setattr(status, "_seen", {})
    refuse(sweep[1], stat=True)
    folders = folder.job_folders(tmp_path)
    assert folders == sweep
    table = status.table(folders, 200)
    assert "unknown: status.json cannot be read (Stale file handle)" in table
    assert "2 done, 1 unknown" in table


def test_status_names_an_unreadable_file(sweep, monkeypatch):
    monkeypatch.setattr(status, "_seen", {})

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(status, "read_tail", fail)
    assert "done: metrics.jsonl cannot be read (Input/output error)" in status.table(sweep, 200)


@pytest.mark.parametrize("part", ["samples", "checkpoints", "."])
def test_report_names_unlistable_folders(sweep, tmp_path, refuse, part):
    (sweep[1] / "checkpoints").mkdir(exist_ok=True)
    refuse(sweep[1] / part)
    record = run_record.read(sweep[1])
    place = sweep[1] if part == "." else sweep[1] / part
    assert f"{place}: cannot be listed (Stale file handle)" in record.problems
    if part == "checkpoints":
        assert commands.sample(record) is None
    page, *_ = report.write(sweep, tmp_path / "report", "x")
    assert "cannot be listed (Stale file handle)." in page.read_text()


def test_report_keeps_a_run_in_an_unlistable_folder(sweep, tmp_path, refuse):
    refuse(sweep[1], stat=True)
    record = run_record.read(sweep[1])
    assert record.state == "unknown" or record.problems
    assert any("Stale file handle" in problem for problem in record.problems)


def test_unlistable_config_folders_are_named(tmp_path, refuse, monkeypatch):
    (tmp_path / "mine").mkdir()
    refuse(tmp_path / "mine")
    with own_folder.used(tmp_path / "mine"):
        assert f"{tmp_path / 'mine'}: cannot be listed" in explain._not_text()


def test_unlistable_checkout_gives_a_message_without_traceback(tmp_path, monkeypatch, capsys):
    (tmp_path / "run.py").touch()

    def fail(_):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setattr("ddpm.runner.execution.shadowed_modules.os.listdir", fail)
    check_shadowed_modules()
    assert f"{tmp_path}: cannot be listed (Permission denied)" in capsys.readouterr().err


def test_lock_with_unlistable_holders_counts_as_taken(tmp_path, monkeypatch):
    (tmp_path / "run.lock.held").mkdir()

    def fail(_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(OSError, match="Stale file handle"), file_locks.held(tmp_path / "run.lock"):
        pass
    assert file_locks.is_taken(tmp_path / "run.lock")
