"""Locks on file systems that have flock, record locks, or none: one run works in a folder.

Covered are all kinds of lock with two processes, kills, forks, other machines, restarts, ids of
processes that are used again, and machines that use different kinds for one file; and what stands
on the locks: runs, sweeps, searches, caches of data and downloads. The file systems are stand-ins:
calls of the kernel that refuse below a folder.
"""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from support.base import ROOT, TINY
from support.crash import go, output_of, start, until, wait
from support.file_systems import CODES, KINDS, offer
from support.image_sets import Counted, everything, folder, tree  # noqa: F401
from support.runs import losses_of, status_of
from support.sweep_folders import jobs_of

from ddpm.data import cache as image_cache
from ddpm.errors import InputError
from ddpm.runner.report import status
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io import file_locks, kernel_locks, lock_holder
from ddpm.runner.sweeps.search import study

fork = multiprocessing.get_context("fork")
CONFIG = {"a": 1, "model": {}, "data": {}, "choices": {"job": "train"}}
LIVING = ["flock", "record", "folder"]  # kinds that hold against any process


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(file_locks, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(file_locks, "PROBE_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(kernel_locks, "_warned", set())


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch, tmp_path):
    offer(monkeypatch, tmp_path, request.param)
    return request.param


def in_other(function, *arguments):
    """What a function returns in a forked process, or the exception that it raises."""
    receive, send = fork.Pipe(duplex=False)

    def work():
        try:
            send.send(function(*arguments))
        except BaseException as error:
            send.send(error)

    process = fork.Process(target=work)
    process.start()
    assert receive.poll(30)
    answer = receive.recv()
    process.join()
    return answer


def holder_of(path, function=file_locks.take):
    """A process that holds a lock until it is killed: its id."""
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            _lock = function(path)
            os.write(tell, b"1")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"1"
    os.close(ready)
    os.close(tell)
    return child


def kill(child, *, reap=True):
    os.kill(child, signal.SIGKILL)
    if reap:
        os.waitpid(child, 0)
    else:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)


def left_in(path):
    return sorted(file.name for file in path.iterdir())


# a lock


def test_lock_admits_one_process_at_a_time(kind, tmp_path):
    path = tmp_path / "a.lock"
    assert not file_locks.is_taken(path)
    assert left_in(tmp_path) == []
    lock = file_locks.take(path)
    taken = in_other(file_locks.take, path)
    assert isinstance(taken, file_locks.Taken)
    assert taken.holder == f"process {os.getpid()} on {os.uname().nodename}"
    assert taken.remedy == ""
    assert in_other(file_locks.is_taken, path) is True
    lock.release()
    assert in_other(file_locks.is_taken, path) is False
    assert left_in(tmp_path) == ["a.lock"]
    assert not isinstance(in_other(file_locks.held(path).__enter__), BaseException)


def test_lock_is_held_once_within_a_process(kind, tmp_path):
    """And to look at it in the process that holds it does not free it."""
    path = tmp_path / "a.lock"
    with file_locks.held(path):
        for _ in range(3):
            assert file_locks.is_taken(path)
            with pytest.raises(file_locks.Taken):
                file_locks.take(path)
        path.read_bytes()
        assert in_other(file_locks.is_taken, path) is True
    assert not file_locks.is_taken(path)
    with file_locks.held(path):
        assert file_locks.is_taken(path)


@pytest.mark.parametrize("reap", [True, False], ids=["gone", "not waited for"])
def test_killing_the_holder_frees_the_lock(kind, reap, tmp_path):
    path = tmp_path / "a.lock"
    child = holder_of(path)
    assert file_locks.is_taken(path)
    kill(child, reap=reap)
    assert not file_locks.is_taken(path)
    with file_locks.held(path):
        assert in_other(file_locks.is_taken, path) is True
    assert left_in(tmp_path) == ["a.lock"]


def test_forked_process_neither_holds_nor_frees_the_lock(kind, tmp_path):
    path = tmp_path / "a.lock"
    ready, tell = os.pipe()
    parent = os.fork()
    if not parent:
        lock = file_locks.take(path)
        child = os.fork()
        if not child:
            lock.release()
        os.write(tell, f"{child}\n".encode() if child else b"")
        while True:
            signal.pause()
    child = int(os.read(ready, 20))
    try:
        assert file_locks.is_taken(path)
        kill(parent)
        os.kill(child, 0)
        assert not file_locks.is_taken(path)
        file_locks.take(path).release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_waiting_process_gets_the_lock(kind, tmp_path):
    path = tmp_path / "a.lock"
    child = holder_of(path)
    process = fork.Process(target=lambda: file_locks.take(path, wait=True))
    process.start()
    process.join(0.2)
    assert process.is_alive()
    kill(child)
    process.join(30)
    assert process.exitcode == 0


def test_holder_of_the_lock_is_named(tmp_path, monkeypatch, caplog):
    offer(monkeypatch, tmp_path, "folder")
    lock = file_locks.take(tmp_path / "a.lock")
    now = iter(range(99))
    clock = SimpleNamespace(
        monotonic=lambda: next(now), sleep=lambda _: lock.release() if next(now) > 20 else None
    )
    monkeypatch.setattr(file_locks, "time", clock)
    with file_locks.held(tmp_path / "a.lock", wait=True):
        assert caplog.text.count(f"waiting for process {os.getpid()} on") == 1


def add(path, count):
    for _ in range(count):
        with file_locks.held(path.with_name("a.lock"), wait=True):
            number = int(path.read_text())
            path.write_text(str(number + 1))


@pytest.mark.parametrize("kind", LIVING, indirect=True)
def test_many_processes_take_turns(kind, tmp_path):
    (tmp_path / "number").write_text("0")
    processes = [fork.Process(target=add, args=(tmp_path / "number", 25)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert (tmp_path / "number").read_text() == "100"
    assert left_in(tmp_path) == ["a.lock", "number"]


@pytest.mark.parametrize("kind", LIVING, indirect=True)
def test_shared_lock_reports_whether_it_is_the_first(kind, tmp_path):
    path = tmp_path / "users"
    lock, first = file_locks.join(path)
    assert first
    other = holder_of(path, file_locks.join)
    third, first = file_locks.join(path)
    assert not first
    lock.release()
    third.release()
    lock, first = file_locks.join(path)
    assert not first
    lock.release()
    kill(other)
    lock, first = file_locks.join(path)
    assert first
    lock.release()
    assert left_in(tmp_path) == ["users"]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", ["record", "folder"])
def test_unsupported_lock_calls_are_replaced_with_a_warning(
    code, kind, tmp_path, monkeypatch, caplog
):
    offer(monkeypatch, tmp_path, kind, code)
    with file_locks.held(tmp_path / "a.lock"), file_locks.held(tmp_path / "b.lock"):
        assert file_locks.is_taken(tmp_path / "b.lock")
    (line,) = caplog.text.splitlines()
    assert os.strerror(code) in line
    assert ("Record locks" in line) == (kind == "record")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_failing_lock_call_is_not_a_missing_lock(code, tmp_path, monkeypatch):
    offer(monkeypatch, tmp_path, "record", code)
    with pytest.raises(OSError, match=os.strerror(code)):
        file_locks.take(tmp_path / "a.lock")
    with pytest.raises(OSError, match=os.strerror(code)):
        file_locks.take(tmp_path / "a.lock", wait=True)


def test_lock_files_are_opened_for_writing_as_nfs_requires(tmp_path, monkeypatch, caplog):
    flock = fcntl.flock

    def refuse(file, operation):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "a.lock"
    child = holder_of(path)
    monkeypatch.setattr(lock_holder.Holder, "has_ended", lambda self: None)  # on another machine
    assert file_locks.is_taken(path)
    kill(child)
    assert not file_locks.is_taken(path)
    assert caplog.text == ""


def test_permission_error_on_smb_counts_as_a_held_lock(tmp_path, monkeypatch):
    """Of a locked file, which cannot be read then either."""
    offer(monkeypatch, tmp_path, "record", errno.EACCES)
    monkeypatch.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(file_locks.Taken, match="another process"):
        file_locks.take(tmp_path / "a.lock")
    assert file_locks.is_taken(tmp_path / "a.lock")


# what is known of a holder


def held_by(path, kind="folder", **changes):
    """A lock as another process leaves it: the file that describes that one."""
    text = json.dumps(vars(lock_holder.this_process(kind)) | changes)
    file = path
    if kind == "folder":
        file = path.with_name(f"{path.name}.held") / "4711-abc"
        file.parent.mkdir(exist_ok=True)
    file.write_text(f"process {changes.get('pid', os.getpid())} on x\n{text}\n")
    return file


HERE = {"host": "elsewhere"}  # a name counts for nothing where boot and namespace agree
UNKNOWN = [
    {"host": "elsewhere", "boot": "b", "machine": "m"},
    {"boot": "b", "machine": "m"},  # two machines of one name
    {"host": "elsewhere", "boot": "b"},  # two copies of one machine
    {"boot": "b", "machine": ""},
    {"namespace": "pid:[1]"},  # a container
]
ENDED = [
    {"started": "1"},  # the id is another process's now
    {"pid": 2**31 - 1},  # above what Linux gives
    {"boot": "b"},  # the machine was restarted
    {**HERE, "pid": 2**31 - 1},
]


@pytest.fixture
def _machine(monkeypatch):
    monkeypatch.setattr(
        lock_holder, "_text", lambda path: "known" if "machine" in path else "booted"
    )


@pytest.mark.usefixtures("_machine")
@pytest.mark.parametrize("changes", UNKNOWN)
def test_lock_of_another_machine_is_refused_naming_the_file_to_remove(
    changes, tmp_path, monkeypatch
):
    offer(monkeypatch, tmp_path, "folder")
    run = run_dir.create(tmp_path / "run", CONFIG, unique=False)
    run_dir.write_status(run, "running", 5)
    file = held_by(run / "run.lock", pid=2**31 - 1, **changes)
    assert run_dir.is_locked(run)
    assert status.read(run).state == "running"
    with pytest.raises(run_dir.Busy) as caught, run_dir.lock(run):
        pass
    (line,) = str(caught.value).splitlines()
    assert line.endswith(f"If that process has ended, remove {file} and try again.")
    assert run_dir.remedy(run) in line
    file.unlink()
    assert not run_dir.is_locked(run)
    assert status.read(run).state == "killed"
    with run_dir.lock(run):
        pass


@pytest.mark.usefixtures("_machine")
@pytest.mark.parametrize("changes", ENDED)
def test_holder_on_this_machine_is_checked(changes, tmp_path, monkeypatch):
    offer(monkeypatch, tmp_path, "folder")
    held_by(tmp_path / "a.lock", **changes)
    assert not file_locks.is_taken(tmp_path / "a.lock")
    with file_locks.held(tmp_path / "a.lock"):
        assert file_locks.is_taken(tmp_path / "a.lock")


def test_process_of_another_user_counts_as_running(tmp_path, monkeypatch):
    """It must not be signalled, and /proc may not show it."""
    offer(monkeypatch, tmp_path, "folder")
    held_by(tmp_path / "a.lock", pid=1)
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no")))
    monkeypatch.setattr(lock_holder, "_state_of", lambda pid: ("", ""))
    assert file_locks.is_taken(tmp_path / "a.lock")


DAMAGED = [b"", b"process 1 on x\n", b"x\n{}", b"x\n[1]", b"x\n" + b"[" * 1900, b"\xff\n{"]
DAMAGED += [
    b"x\n" + json.dumps(vars(lock_holder.this_process("folder")) | {"pid": pid}).encode()
    for pid in (0, -1, True, 2**40, "1", None, 1.5)
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_lock_description_counts_as_held(text, tmp_path, monkeypatch):
    offer(monkeypatch, tmp_path, "folder")
    path = tmp_path / "a.lock"
    file = held_by(path)
    file.write_bytes(text)
    path.write_bytes(text)
    assert file_locks.is_taken(path)
    with pytest.raises(file_locks.Taken, match="another process") as caught:
        file_locks.take(path)
    assert str(file) in caught.value.remedy
    file.unlink()
    with file_locks.held(path):
        assert file_locks.is_taken(path)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_different_kinds_of_locks_exclude_each_other(first, second, tmp_path):
    """Machines may mount a file system with different options, and locks can be short."""
    path = tmp_path / "a.lock"
    with pytest.MonkeyPatch.context() as patch:
        offer(patch, tmp_path, first, errno.ENOLCK)
        child = holder_of(path)
    with pytest.MonkeyPatch.context() as patch:
        offer(patch, tmp_path, second)
        assert file_locks.is_taken(path)
        with pytest.raises(file_locks.Taken, match=f"process {child} on"):
            file_locks.take(path)
        kill(child)
        assert not file_locks.is_taken(path)
        with file_locks.held(path):
            assert file_locks.is_taken(path)
        assert left_in(tmp_path) == ["a.lock"]


# what stands on them


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        pytest.param("record", errno.ENOSYS, marks=pytest.mark.slow),
        ("folder", errno.ENOLCK),
    ],
)
def test_run_and_resume_work_with_every_kind_of_lock(kind, code, run, tmp_path, monkeypatch):
    offer(monkeypatch, tmp_path, kind, code)
    status, out, err = run(*TINY, "output_dir=run", "job.sample_every=null")
    assert status == 0, out + err
    assert (out + err).count(os.strerror(code)) == 1, "printed once, not for data and for the run"
    assert run("resume=run", "job.max_steps=8")[0] == 0
    assert status_of(tmp_path / "run")["state"] == "done"
    assert [step for step, _ in losses_of(tmp_path / "run")] == list(range(1, 9))
    assert not list(tmp_path.rglob("*.held"))
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("record", marks=pytest.mark.slow), "folder"])
def test_running_run_is_locked_and_can_be_resumed_after_a_kill(kind, tmp_path, monkeypatch):
    offer(monkeypatch, tmp_path, kind)
    words = [*TINY, "output_dir=run", "job.max_steps=100000", "job.sample_every=null"]
    child = start(tmp_path, *words, "job.save_every=null")
    until((tmp_path / "run" / "metrics.jsonl").exists, child)
    assert status.read(tmp_path / "run").state == "running"
    assert go(tmp_path, "resume=run") == 2
    assert f"run: this run is being worked on by process {child} on " in output_of(tmp_path)
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -9
    assert status.read(tmp_path / "run").state == "killed"
    assert go(tmp_path, "resume=run", "job.max_steps=6") == 0, output_of(tmp_path)
    assert status.read(tmp_path / "run").state == "done"


def test_failed_lock_does_not_block_the_next_start(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        offer(patch, tmp_path / "new", "record", errno.EIO)
        status, out, err = run(*TINY, "output_dir=new")
        assert status == 2
        assert "new: the folder cannot be locked (Input/output error)" in out + err
        assert not (tmp_path / "new").exists()
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "mine").touch()
        assert run(*TINY, "output_dir=new")[0] == 2
        assert left_in(tmp_path / "new") == ["mine"]
    assert run(*TINY, "output_dir=new", "job.max_steps=1", "job.sample_every=null")[0] == 0


@pytest.mark.parametrize("kind", LIVING[1:])
def test_two_processes_build_a_cache_once(kind, tree, monkeypatch):  # noqa: F811
    root, pixels = tree
    offer(monkeypatch, root.parent, kind)
    Counted.built.value = 0
    data = folder(root, kind=Counted)
    processes = [fork.Process(target=data.prepare) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert Counted.built.value == 1
    assert (everything(folder(root))[0] == pixels).all()


def test_a_cache_whose_builder_was_killed_is_built(tree, monkeypatch):  # noqa: F811
    root, pixels = tree
    offer(monkeypatch, root.parent, "folder")
    (root.parent / "cache").mkdir()
    kill(holder_of(root.parent / "cache" / "folder.lock"))
    assert (everything(folder(root))[0] == pixels).all()


@pytest.mark.parametrize(
    ("code", "cure"),
    [(errno.EIO, "Check the folder"), (errno.EROFS, "Make it writable"), (errno.ENOSPC, "Free")],
)
def test_advice_matches_the_failure(code, cure, tree, monkeypatch):  # noqa: F811
    def fail(path, wait):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(file_locks, "_take", fail)
    with pytest.raises(InputError, match=cure), image_cache.writing(tree[0].parent, "x"):
        pass


@pytest.mark.slow
def test_sweep_works_without_flock(run, tmp_path, monkeypatch):
    offer(monkeypatch, tmp_path, "folder")
    words = ["-m", *TINY, "job.max_steps=1", "job.sample_every=null", "sweep=study", "seed=1"]
    status, out, err = run(*words)
    assert status == 0, out + err
    (job,) = jobs_of(tmp_path).values()
    run_dir.write_status(job, "running", 1)
    file = held_by(job / "run.lock", boot="b", machine="m")
    status, out, err = run(*words)
    assert f"{job.relative_to(tmp_path)} is being worked on by another process" in out
    assert f"remove {file.relative_to(tmp_path)}" in out
    assert "1 running" in run("job=status", "sweep=study")[1]
    file.unlink()
    assert "1 killed" in run("job=status", "sweep=study")[1]


def test_trial_is_claimed_by_one_process(tmp_path, monkeypatch, caplog):
    offer(monkeypatch, tmp_path, "folder")
    child = holder_of(tmp_path, lambda folder: study.claim_trial(folder, 3))
    assert study.claim_trial(tmp_path, 3) is None
    kill(child)
    lock = study.claim_trial(tmp_path, 3)
    lock.release()
    file = held_by(tmp_path / ".trials" / "4.lock", boot="b", machine="m")
    caplog.clear()
    assert study.claim_trial(tmp_path, 4) is None
    assert study.claim_trial(tmp_path, 4) is None
    assert caplog.text.count(f"remove {file}") == 1


class Entry(SimpleNamespace):
    """A file of an artifact, which takes its time to come."""

    ref, size, path = None, 3, "step-0000001.pt"
    asked = fork.Value("i", 0)

    def download(self, root, skip_cache):
        with self.asked.get_lock():
            self.asked.value += 1
        time.sleep(0.3)
        file = f"{root}/{self.path}"
        with open(file, "w") as opened:
            opened.write("abc")
        return file


@pytest.mark.parametrize("kind", LIVING)
def test_a_download_is_made_once(kind, tmp_path, monkeypatch):
    from ddpm.trackers.wandb_client import download

    offer(monkeypatch, tmp_path, kind)
    entry, cache = Entry(), tmp_path / "cache" / "artifacts"
    artifact = SimpleNamespace(
        qualified_name="a/b/c:v1",
        version="v1",
        digest="0" * 32,
        type="model",
        manifest=SimpleNamespace(entries={entry.path: entry}),
        get_entry=lambda name: entry,
    )
    monkeypatch.setattr(download, "_ask", lambda name: artifact)
    monkeypatch.setattr(download, "_add_configuration", lambda file: None)
    for left in (f".{artifact.digest}.killed", artifact.digest):  # by an earlier process
        (cache / left).mkdir(parents=True)
        (cache / left / "config.yaml").touch()
    Entry.asked.value = 0
    processes = [fork.Process(target=download.fetch, args=("n", cache)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert Entry.asked.value == 1
    assert left_in(cache) == [artifact.digest, f"{artifact.digest}.lock"]
    monkeypatch.setattr(file_locks, "take", None)  # what is there is read without a lock
    assert download.fetch("n", cache).file.read_text() == "abc"


SITE = """
import errno, fcntl, os
def flock(file, operation):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = flock
"""


@pytest.mark.slow
def test_parallel_jobs_use_the_same_kind_of_lock(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    env = os.environ | {"PYTHONPATH": path, "DDPM_DATA": str(tmp_path / "data")}
    command = [sys.executable, str(ROOT / "run.py"), "-m", *TINY, "sweep=study", "seed=1,2"]
    done = subprocess.run(
        [*command, "hydra/launcher=slots"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [status_of(job)["state"] for job in jobs_of(tmp_path).values()] == ["done", "done"]
    assert all(
        "Record locks" in (job / "job.log").read_text() for job in jobs_of(tmp_path).values()
    )


def test_no_other_module_locks_files():
    """What a lock is on which file system is decided in one place."""
    users = [
        file.relative_to(ROOT).as_posix()
        for part in ("ddpm", "hydra_plugins")
        for file in (ROOT / part).rglob("*.py")
        if "import fcntl" in file.read_text()
    ]
    assert users == ["ddpm/runner/safe_io/kernel_locks.py"]
