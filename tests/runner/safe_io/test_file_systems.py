"""Features that a file system may lack: no run fails without them.

Covered are fsync of files and folders, names that cannot be replaced while they are read, folders
that cannot be renamed, hard and symbolic links, memory maps, preadv, times in seconds, free room
that is not told, long names and odd letters, modes that cannot be set, and shared memory. Real
failures of the same calls (EIO, ENOSPC, permissions) stay failures. The file systems are stand-ins:
calls of the kernel that refuse.
"""

import errno
import mmap
import multiprocessing
import os
import shutil
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.base import TINY
from support.checkpoints import state
from support.crash import go, output_of
from support.file_systems import error
from support.image_sets import Large, build, everything, folder, tree  # noqa: F401
from support.runs import assert_equal_state, losses_of, state_of, status_of

from ddpm.data import cache
from ddpm.errors import InputError
from ddpm.runner.checkpoints import checkpoint, safetensors_file
from ddpm.runner.config import validate
from ddpm.runner.report import status as table
from ddpm.runner.runs import requests, run_dir
from ddpm.runner.safe_io import atomic
from ddpm.trackers.wandb_client import uploads
from ddpm.training import loader


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run on a file system with all features."""
    home = tmp_path_factory.mktemp("uninterrupted")
    assert go(home, *TINY, "output_dir=run") == 0, output_of(home)
    return home / "run"


MISSING = [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS]
FAILING = [errno.EIO, errno.ENOSPC, errno.EDQUOT]
CONFIG = {"a": 1, "model": {}, "data": {}, "choices": {"job": "train"}, "kind": "trains"}


def refuse(monkeypatch, owner, name, code, times=10**9, where=lambda *arguments: True):
    """Make a call fail so many times, and work from then on."""
    real, calls = getattr(owner, name), []

    def call(*arguments, **options):
        if where(*arguments) and len(calls) < times:
            calls.append(arguments)
            raise error(code)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


def is_folder(file, *_):
    return stat.S_ISDIR(os.fstat(file).st_mode)


# fsync


@pytest.mark.parametrize("code", sorted({*MISSING} - {errno.EBADF}))
def test_checkpoint_is_saved_without_fsync(code, tmp_path, monkeypatch):
    refuse(monkeypatch, os, "fsync", code)
    path = checkpoint.save(tmp_path, state(3), 2)
    assert checkpoint.load(path)["step"] == 3


@pytest.mark.parametrize("code", [*MISSING, errno.EACCES, errno.EISDIR])
def test_checkpoint_is_saved_in_a_folder_that_cannot_be_opened(code, tmp_path, monkeypatch):
    refuse(monkeypatch, os, "open", code, where=lambda path, *_: path == tmp_path)
    checkpoint.save(tmp_path, state(3), 2)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-0000003.pt"]


@pytest.mark.parametrize("where", [is_folder, lambda file: not is_folder(file)])
@pytest.mark.parametrize("code", FAILING)
def test_failing_fsync_fails_the_checkpoint(code, where, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, state(3), 2)
    refuse(monkeypatch, os, "fsync", code, where=where)
    with pytest.raises(InputError, match="could not be written"):
        checkpoint.save(tmp_path, state(5), 2)


def test_run_and_export_work_without_fsync(tmp_path, monkeypatch):
    refuse(monkeypatch, os, "fsync", errno.EINVAL)
    assert go(tmp_path, *TINY, "output_dir=run", "job.max_steps=2") == 0, output_of(tmp_path)
    assert status_of(tmp_path / "run")["saved"] == 2
    assert (tmp_path / "run" / "loss.png").stat().st_size
    assert go(tmp_path, "job=export", "checkpoint=run", "output_dir=e") == 0, output_of(tmp_path)


# renames


@pytest.mark.parametrize("code", [errno.EBUSY, errno.ETXTBSY, errno.EACCES])
def test_replacing_a_busy_file_is_retried(code, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_PAUSES", (0, 0, 0))
    calls = refuse(monkeypatch, os, "replace", code, times=2)
    run_dir.write_status(tmp_path, "running", 1)
    assert len(calls) == 2
    assert run_dir.read_status(tmp_path)["step"] == 1
    requests.ask_to_stop(tmp_path, "pruned")
    assert requests.end_state(tmp_path) == "pruned"
    for never in (code, errno.ENOSPC):
        calls = refuse(monkeypatch, os, "replace", never)
        with pytest.raises(OSError, match=os.strerror(never)):
            run_dir.write_status(tmp_path, "running", 2)
        assert run_dir.read_status(tmp_path)["step"] == 1
    assert len(calls) == 1, "no second try for what will not go by"


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.EACCES])
def test_run_folders_are_created_without_renaming_folders(code, tmp_path, monkeypatch):
    refuse(monkeypatch, os, "rename", code)
    made = [run_dir.create(tmp_path / "a" / "now", CONFIG, unique=True) for _ in range(2)]
    made.append(run_dir.create(tmp_path / "own", CONFIG, unique=False))
    assert [path.name for path in made] == ["now", "now-2", "own"]
    for path in made:
        assert run_dir.read_config(path) == CONFIG
        assert [file.name for file in path.iterdir()] == ["config.yaml"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["now", "now-2"]
    (tmp_path / "got").mkdir()
    for name in ("a.pt", "config.yaml"):
        (tmp_path / "got" / name).write_text(name)
    moved = refuse(
        monkeypatch, os, "replace", errno.ENOSPC, where=lambda new, _: new.suffix == ".pt"
    )
    with pytest.raises(OSError, match="No space"):
        atomic.rename_folder(tmp_path / "got", tmp_path / "kept")
    assert moved
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["config.yaml"]


def test_io_error_while_renaming_leaves_nothing(tmp_path, monkeypatch):
    refuse(monkeypatch, os, "rename", errno.EIO)
    with pytest.raises(InputError, match="output_dir="):
        run_dir.create(tmp_path / "run", CONFIG, unique=False)
    assert list(tmp_path.iterdir()) == []


# modes, links, names


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_run_folder_follows_the_umask(mask, tmp_path, monkeypatch):
    for name in ("chmod", "fchmod"):
        refuse(monkeypatch, os, name, errno.EPERM)
    before = os.umask(mask)
    try:
        path = run_dir.create(tmp_path / "run", CONFIG, unique=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~mask


def test_folder_check_works_if_open_files_cannot_be_removed(tmp_path, monkeypatch):
    """As on SMB, and without O_TMPFILE."""
    unlink = os.unlink
    opened = lambda path: any(  # noqa: E731
        os.path.realpath(f"/proc/self/fd/{fd}") == os.path.realpath(path)
        for fd in os.listdir("/proc/self/fd")
    )
    refuse(monkeypatch, os, "unlink", errno.EBUSY, where=lambda path, *_, **__: opened(path))
    refuse(monkeypatch, os, "open", errno.EOPNOTSUPP, where=lambda _, flags, *__: _nameless(flags))
    run_dir.check_free(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert os.unlink is not unlink


def _nameless(flags):
    return flags & os.O_TMPFILE == os.O_TMPFILE


@pytest.mark.parametrize("copy", [shutil.copy2, shutil.copy, shutil.move])
def test_bare_copies_ignore_modes_and_times(copy, tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    for name in ("chmod", "utime"):
        refuse(monkeypatch, os, name, errno.EPERM)
    refuse(monkeypatch, os, "rename", errno.EXDEV)
    with atomic.bare_copies():
        copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "a"
    (tmp_path / "a").touch()
    with pytest.raises(PermissionError):
        copy(tmp_path / "a", tmp_path / "b")
    refuse(monkeypatch, os, "chmod", errno.EIO)
    refuse(monkeypatch, os, "utime", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), atomic.bare_copies():
        copy(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS])
def test_uploads_are_copied_without_hard_links(code, tmp_path, monkeypatch):
    refuse(monkeypatch, os, "link", code)
    (tmp_path / "a").write_bytes(b"weights")
    held = uploads._link(tmp_path / "a", tmp_path / "held" / "a")
    (tmp_path / "a").unlink()
    assert held.read_bytes() == b"weights"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_study_works_without_symbolic_links(code, tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    from ddpm.runner.sweeps.search import optuna_search

    refuse(monkeypatch, os, "symlink", code)
    refuse(monkeypatch, os, "fsync", errno.EINVAL)
    for _ in range(2):
        study = optuna_search._open(None, tmp_path, optuna.pruners.NopPruner(), "minimize")
        trial = study.ask()
        study.tell(trial, 1.0)
    assert len(study.trials) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


def test_failing_fsync_fails_the_study(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    from ddpm.runner.sweeps.search import optuna_search

    refuse(monkeypatch, os, "fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        optuna_search._open(None, tmp_path, optuna.pruners.NopPruner(), "minimize")


def test_study_uses_the_lock_of_optuna_where_symbolic_links_exist(tmp_path):
    """So that a script of the user can enqueue trials meanwhile."""
    pytest.importorskip("optuna")
    from optuna.storages.journal import JournalFileSymlinkLock

    from ddpm.runner.sweeps.search import optuna_search

    storage = optuna_search._storage(None, tmp_path)
    assert type(storage._backend._own_lock) is JournalFileSymlinkLock
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


def test_slurm_jobs_are_submitted_without_symbolic_links(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    from submitit.core.utils import JobPaths

    from ddpm.runner.sweeps.launchers import slurm

    refuse(monkeypatch, os, "symlink", errno.EPERM)
    move, paths = JobPaths.move_temporary_file, JobPaths(tmp_path, "7")
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with slurm._links_optional():
        paths.move_temporary_file(tmp_path / "a", "submission_file", keep_as_symlink=True)
        assert paths.submission_file.read_text() == "a"
        with pytest.raises(FileNotFoundError):
            paths.move_temporary_file(tmp_path / "none", "submitted_pickle")
    assert JobPaths.move_temporary_file is move


def test_run_folder_may_have_a_name_of_255_characters(tmp_path):
    for unique in (True, False):
        path = run_dir.create(
            tmp_path / ("x" * 255 if unique else "y" * 255), CONFIG, unique=unique
        )
        assert run_dir.read_config(path) == CONFIG


def test_option_names_too_long_for_preset_files_are_accepted(tmp_path):
    """The names of presets are made of several options: conf/model_data/<model>_<data>.yaml."""
    validate.check_files([tmp_path], {"size": "x" * 300})


# memory maps


@pytest.fixture(params=[errno.ENODEV, errno.EINVAL, errno.EACCES])
def _no_maps(request, monkeypatch):
    real = mmap.mmap

    def refused(file, *arguments, **options):
        if file == -1:  # memory of no file
            return real(file, *arguments, **options)
        raise error(request.param)

    monkeypatch.setattr(mmap, "mmap", refused)


@pytest.mark.usefixtures("_no_maps")
def test_images_are_read_without_a_memory_map(tree, caplog):  # noqa: F811
    root, pixels = tree
    for _ in range(2):
        data = folder(root, num_classes=2)
        images, labels = everything(data)
        assert (images == pixels).all()
        assert labels == [0, 0, 1, 1, 1]
        assert (data[-1][0].permute(1, 2, 0).numpy() == pixels[-1]).all()
        assert [label for _, label in data] == labels
        with pytest.raises(IndexError):
            data[5]
    assert "damaged" not in caplog.text, "and built once"


@pytest.mark.usefixtures("_no_maps")
@pytest.mark.parametrize("left", [0, 20, 200])
def test_a_damaged_cache_is_built_again_without_a_memory_map(left, tree, caplog):  # noqa: F811
    root, pixels = tree
    data = folder(root)
    data.prepare()
    os.truncate(data.cache_file, left)
    assert (everything(folder(root))[0] == pixels).all()
    assert "is damaged: building it again" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("_no_maps")
@pytest.mark.parametrize("_no_maps", [errno.ENODEV], indirect=True)
def test_run_without_memory_maps_gives_the_same_weights(uninterrupted, tmp_path):
    assert go(tmp_path, *TINY, "output_dir=run") == 0, output_of(tmp_path)
    assert_equal_state(state_of(tmp_path / "run", 6), state_of(uninterrupted, 6))
    assert losses_of(tmp_path / "run") == losses_of(uninterrupted)


def short(file, buffers, place):
    """A file system that reads some bytes at a time."""
    data = os.pread(file, min(1000, len(buffers[0])), place)
    buffers[0][: len(data)] = data
    return len(data)


@pytest.mark.parametrize("how", ["short", "missing", *MISSING])
def test_rows_are_read_completely_with_short_or_missing_preadv(how, tmp_path, monkeypatch):
    data = Large(tmp_path, 20)
    index = [19, 0, 5, 5]
    with_map = data.__getitems__(index)[0]
    monkeypatch.setattr(cache, "LARGE", 1000)
    if how == "short":
        monkeypatch.setattr(os, "preadv", short)
    elif how == "missing":
        monkeypatch.delattr(os, "preadv")
    else:
        refuse(monkeypatch, os, "preadv", how)
    assert torch.equal(Large(tmp_path, 20).__getitems__(index)[0], with_map)
    data = Large(tmp_path, 20)
    assert len(data) == 20
    os.truncate(data.cache_file, 200_000)
    with pytest.raises(InputError, match="has lost its end"):
        data.__getitems__([19])


def test_io_error_while_reading_rows_is_raised(tmp_path, monkeypatch):
    data = Large(tmp_path, 20)
    data.prepare()
    monkeypatch.setattr(cache, "LARGE", 1000)
    refuse(monkeypatch, os, "preadv", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        data.__getitems__([3])


def test_an_export_is_read_without_a_memory_map(uninterrupted, tmp_path, monkeypatch):
    assert go(tmp_path, "job=export", f"checkpoint={uninterrupted}", "output_dir=e") == 0, (
        output_of(tmp_path)
    )
    file = tmp_path / "e" / safetensors_file.NAME
    mapped = safetensors_file._tensors(file)

    def refused(*arguments, **options):
        raise OSError("No such device (os error 19)")  # as the library says it, without a number

    monkeypatch.setattr(safetensors_file, "safe_open", refused)
    unmapped = safetensors_file._tensors(file)
    assert mapped.keys() == unmapped.keys()
    assert all(torch.equal(mapped[name], unmapped[name]) for name in mapped)
    assert checkpoint.find(tmp_path / "e")[1]["step"] == 6


# times, room


def test_changes_within_one_second_are_detected(tmp_path, monkeypatch):
    """Of the same size, in the same second, in the same place of the disk."""
    (tmp_path / "config.yaml").write_text("a: 1\n")
    file = tmp_path / "status.json"
    for step in (4, 6):
        file.write_text(f'{{"state": "done", "step": {step}}}')
        now = int(file.stat().st_mtime) * 10**9
        os.utime(file, ns=(now, now))
        assert table.read(tmp_path).step == step
    long_ago = now - 60 * 10**9
    os.utime(file, ns=(long_ago, long_ago))
    assert table.read(tmp_path).step == 6
    monkeypatch.setattr(table, "read_object", None)
    assert table.read(tmp_path).step == 6, "what is old is not read again"


@pytest.mark.parametrize("answer", [error(errno.ENOSYS), (0, 0, 0)], ids=["error", "zero"])
def test_unknown_free_space_is_ignored(answer, tmp_path, monkeypatch):
    def usage(folder):
        if isinstance(answer, OSError):
            raise answer
        return SimpleNamespace(total=answer[0], used=answer[1], free=answer[2])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert atomic.free_bytes(tmp_path) is None
    refuse(monkeypatch, os, "fsync", errno.ENOSPC)
    with pytest.raises(InputError, match=r"it needs [\d.]+ MB\)\. There is no older one"):
        checkpoint.save(tmp_path, state(3), 2)


# shared memory


@pytest.mark.parametrize(
    ("free", "possible"), [(None, 4), (10**9, 4), (4 * 2 * 2 * 192, 4), (2 * 2 * 192, 1), (0, 0)]
)
def test_number_of_workers_is_limited_by_shared_memory(
    free,
    possible,
    tree,  # noqa: F811
    monkeypatch,
    caplog,
):
    data = folder(tree[0])  # of 192 bytes each
    monkeypatch.setattr(loader, "free_bytes", lambda folder: free)
    assert loader._limit(4, 2 * loader._image_bytes(data)) == possible
    assert ("job.num_workers=4" in caplog.text) == (possible < 4)


@pytest.mark.parametrize("what", [error(errno.ENOSYS), error(errno.ENOENT), ImportError("none")])
def test_no_workers_are_started_without_semaphores(what, monkeypatch, caplog):
    refuse_with(what, monkeypatch)
    assert loader._limit(2, 100) == 0
    assert "the training process loads the data" in caplog.text


def refuse_with(what, monkeypatch):
    def refused(*arguments, **options):
        raise what

    monkeypatch.setattr(loader, "get_context", lambda: SimpleNamespace(Lock=refused))


def test_run_without_shared_memory_gives_the_same_losses(uninterrupted, tmp_path, monkeypatch):
    refuse_with(error(errno.ENOSYS), monkeypatch)
    assert go(tmp_path, *TINY, "output_dir=run", "job.num_workers=2") == 0, output_of(tmp_path)
    assert "job.num_workers=2: the training process loads the data" in output_of(tmp_path)
    assert losses_of(tmp_path / "run") == losses_of(uninterrupted)


def test_unmapped_rows_are_indexed_like_arrays(tmp_path):
    data = build("digits", tmp_path)
    data.prepare()
    rows = cache.Rows(data.arrays[0].shape, data.arrays[0].base.offset)
    for index in ([0], [-1, 3], [1796, 1796]):
        index = np.asarray(index)
        assert (data.cache.read_rows(rows, index) == data.arrays[0][index]).all()
    for index in (1797, -1798):
        with pytest.raises(IndexError):
            data.cache.read_rows(rows, np.asarray([index]))


def test_processes_that_cannot_start_are_explained(run, monkeypatch):
    import torch.multiprocessing

    real = torch.multiprocessing.get_context

    def context(method=None):
        made = real(method)
        made.SimpleQueue = lambda: (_ for _ in ()).throw(error(errno.ENOENT))
        return made

    monkeypatch.setattr(torch.multiprocessing, "get_context", context)
    monkeypatch.setattr(multiprocessing, "get_context", context)
    words = [word for word in TINY if not word.startswith("hardware")]
    status, out, err = run(*words, "hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2")
    assert status == 2, out + err
    assert "They need shared memory" in err
