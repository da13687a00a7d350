"""The folder of a run: only one run uses it, and its files are complete.

Covered are runs started in the same second, two processes in one folder, a file or a missing
permission in the way, and half-written files after a kill. A lock without a holder cannot occur:
the kernel frees it with the process.
"""

import errno
import fcntl
import multiprocessing
import os
import re
import signal

import pytest

from ddpm.errors import InputError
from ddpm.runner.runs import run_dir

CONFIG = {
    "a": [1, 2],
    "b": None,
    "model": {},
    "data": {},
    "kind": "trains",
    "choices": {"job": "train"},
}


def test_runs_with_equal_names_get_separate_folders(tmp_path):
    paths = {run_dir.create(tmp_path / "a" / "now", CONFIG, unique=True) for _ in range(3)}
    assert {p.name for p in paths} == {"now", "now-2", "now-3"}


def test_folder_that_holds_a_run_is_refused(tmp_path):
    run_dir.create(tmp_path / "run", CONFIG, unique=False)
    run_dir.write_status(tmp_path / "run", "done", 5)
    with pytest.raises(InputError, match=r"holds a run already \(done\)"):
        run_dir.create(tmp_path / "run", CONFIG, unique=False)


def test_folder_whose_run_is_running_is_refused_without_advice_to_resume(tmp_path):
    run_dir.create(tmp_path / "run", CONFIG, unique=False)
    with run_dir.lock(tmp_path / "run"), pytest.raises(run_dir.Busy) as caught:
        run_dir.check_free(tmp_path / "run")
    assert "job=watch" in str(caught.value)
    assert "resume" not in str(caught.value)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    for unique in (False, True):
        with pytest.raises(InputError, match=re.escape(f"output_dir={tmp_path}/file/run")):
            run_dir.create(tmp_path / "file" / "run", CONFIG, unique=unique)


def _try_lock(path, queue):
    try:
        with run_dir.lock(path):
            queue.put("locked")
    except InputError as error:
        queue.put(str(error))


def test_locked_run_is_refused_naming_the_process(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def other():
        process = context.Process(target=_try_lock, args=(tmp_path, queue))
        process.start()
        answer = queue.get()
        process.join()
        return answer

    with run_dir.lock(tmp_path):
        assert "being worked on by process" in other()
    assert other() == "locked"


def test_lock_is_freed_with_its_process_even_if_children_live(tmp_path):
    """A data worker is forked while the lock is held, and outlives its parent."""
    ready, tell = os.pipe()
    parent = os.fork()
    if not parent:
        with run_dir.lock(tmp_path):
            child = os.fork()
            if child:
                os.write(tell, str(child).encode())
            while True:
                signal.pause()
    child = int(os.read(ready, 20))
    try:
        assert run_dir.is_locked(tmp_path)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(child, 0)
        assert not run_dir.is_locked(tmp_path)
        with run_dir.lock(tmp_path):
            assert run_dir.is_locked(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(ready)
        os.close(tell)


def test_is_locked_takes_no_lock_and_creates_no_file(tmp_path):
    assert not run_dir.is_locked(tmp_path)
    assert not run_dir.is_locked(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    with run_dir.lock(tmp_path):
        pass
    assert not run_dir.is_locked(tmp_path)
    with open(tmp_path / "run.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_content_of_a_lock_file_is_shown_on_one_line(tmp_path):
    (tmp_path / "run.lock").write_bytes(b"somebody\n\x1b[31m\xff")
    with open(tmp_path / "run.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError) as caught, run_dir.lock(tmp_path):
            pass
    (line,) = str(caught.value).splitlines()
    assert "being worked on by" in line
    assert "\x1b" not in line


def test_folder_is_not_created_without_its_config(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_dir, "write_config", fail)
    for unique in (False, True):
        with pytest.raises(InputError, match=r"cannot create it \(No space left on device\)"):
            run_dir.create(tmp_path / "run", CONFIG, unique=unique)
        assert list(tmp_path.iterdir()) == []


def test_earlier_config_is_kept_if_it_differs(tmp_path):
    run_dir.write_config(tmp_path, CONFIG)
    run_dir.write_config(tmp_path, CONFIG, step=3)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    run_dir.write_config(tmp_path, CONFIG | {"b": 1}, step=5)
    assert run_dir.read_config(tmp_path)["b"] == 1
    assert "b: null" in (tmp_path / "config.until-step-0000005.yaml").read_text()


def test_clean_removes_only_half_written_files(tmp_path):
    (tmp_path / "samples" / "deep").mkdir(parents=True)
    swept = [".a.1.tmp", "samples/.b.png.2.tmp"]
    kept = ["a.tmp", ".hidden", "samples/b.png", "samples/deep/.c.tmp"]
    for name in (*swept, *kept):
        (tmp_path / name).touch()
    (tmp_path / ".folder.tmp").mkdir()
    run_dir.clean(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {*kept, "samples", "samples/deep", ".folder.tmp"}


@pytest.mark.skipif(os.getuid() == 0, reason="permissions do not bind root")
def test_folder_without_write_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(
            InputError, match=re.escape(f"cannot be written to ({os.strerror(errno.EACCES)})")
        ):
            run_dir.check_free(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', "[" * 100_000])
def test_invalid_status_is_read_as_empty(text, tmp_path):
    (tmp_path / "status.json").write_text(text)
    assert run_dir.read_status(tmp_path) == {}


def test_status_and_config_are_read_back(tmp_path):
    run_dir.write_status(tmp_path, "failed", 3, error="no reason")
    assert run_dir.read_status(tmp_path) == {"state": "failed", "step": 3, "error": "no reason"}
    run_dir.write_config(tmp_path, CONFIG)
    assert run_dir.read_config(tmp_path) == CONFIG
    assert run_dir.read_status(tmp_path / "none") == {}


def test_folders_that_are_not_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match="not the folder of a run"):
        run_dir.read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="line 2, column 1"):
        run_dir.read_config(tmp_path)
