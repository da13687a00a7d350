"""Signals that stop a run: it finishes its step, saves, reports it, and resumes to the bit.

Covered are SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 to one process and to several, to one of
them and to the whole group; a second signal; a cluster's own handlers; a parent that dies and
leaves its children; and two processes in one folder. test_hangup.py has more of SIGHUP. What cannot
be held: a signal before the run has a folder ends it as it would end any program, and there is
nothing to save yet.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time

import pytest
import torch
from support.crash import TINY, go, output_of, start, until, wait
from support.runs import assert_equal_state, files_of, losses_of, process, state_of, status_of
from support.survival import RUN as LONG_STEPS
from support.survival import STEPS, assert_same_run, lines_of
from support.wandb_reader import read_run, run_files

from ddpm.jobs import sampling
from ddpm.jobs.train import Train
from ddpm.runner.distributed import signals
from ddpm.runner.distributed.signals import GracefulStop
from ddpm.runner.runs import run_dir
from ddpm.training.step import Step

RUN = [*(word for word in LONG_STEPS if "batch_size" not in word), "job.batch_size=16"]
ALL = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def slowly(numbers):
    return [pytest.param(number, marks=pytest.mark.slow) for number in numbers]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """An uninterrupted run."""
    home = tmp_path_factory.mktemp("uninterrupted")
    assert go(home, *RUN, "output_dir=run") == 0, output_of(home)
    return home / "run"


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture
def in_step(monkeypatch):
    """Call `action` at the beginning of the n-th step of the runs that are started."""

    def at(n, action):
        step = Step.__call__

        def call(self, number, *batch):
            if number == n:
                action()
            return step(self, number, *batch)

        monkeypatch.setattr(Step, "__call__", call)

    yield at
    monkeypatch.undo()


def steps_saved(run):
    return sorted(int(re.findall(r"\d+", path.name)[0]) for path in run.glob("checkpoints/*"))


def assert_stopped(home, step):
    """The run is saved after this step, reports it, and leaves no temporary files."""
    assert status_of(home / "run") == {"state": "preempted", "step": step, "saved": step}
    assert steps_saved(home / "run")[-1] == step
    assert state_of(home / "run", step)["step"] == step
    assert f"stopped  by a signal, saved after step {step}" in output_of(home)
    assert f" {step} steps in run" in output_of(home)
    assert "go on    python run.py resume=run" in output_of(home)
    assert "Traceback" not in output_of(home)
    assert not list((home / "run").rglob(".*.tmp"))
    assert not run_dir.is_locked(home / "run")


def assert_goes_on(home, uninterrupted, monkeypatch):
    monkeypatch.undo()
    assert go(home, "resume=run") == 0, output_of(home)
    assert_same_run(home / "run", uninterrupted)


@pytest.mark.quick(1)
@pytest.mark.parametrize("number", [*ALL[:3], *slowly(ALL[3:])], ids=lambda number: number.name)
def test_signal_finishes_the_step_and_saves(number, in_step, uninterrupted, tmp_path, monkeypatch):
    in_step(4, lambda: send(number))
    assert go(tmp_path, *RUN, "output_dir=run") == 128 + number, output_of(tmp_path)
    assert_stopped(tmp_path, 5)
    ended = "stopped " if number == signal.SIGINT else "preempted"
    assert f"\n{ended} 5 steps in run" in output_of(tmp_path)
    assert "Stopped." not in output_of(tmp_path), "the outcome says it already"
    assert [row["step"] for row in lines_of(tmp_path / "run")] == [4]
    assert_goes_on(tmp_path, uninterrupted, monkeypatch)


@pytest.mark.slow
def test_signal_at_a_random_step_resumes_exactly(tmp_path):
    """At an arbitrary step; the result is that of a run without the stop."""
    long = ["job.max_steps=100000", "job.save_every=null", "output_dir=run"]
    child = start(tmp_path, *TINY, *long)
    log = tmp_path / "run" / "metrics.jsonl"
    until(lambda: log.exists() and log.read_text().count("\n") >= 3, child)
    os.kill(child, signal.SIGTERM)
    assert wait(child) == 143
    step = status_of(tmp_path / "run")["step"]
    assert_stopped(tmp_path, step)
    assert steps_saved(tmp_path / "run") == [step]
    assert [row["step"] for row in lines_of(tmp_path / "run")] == list(range(1, step + 1))
    end = [f"job.max_steps={step + 2}"]
    assert go(tmp_path, "resume=run", *end) == 0, output_of(tmp_path)
    short = [word for word in TINY if not word.startswith("job.max_steps")]
    words = [*short, *long[1:2], *end, "output_dir=uninterrupted"]
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    one, other = tmp_path / "run", tmp_path / "uninterrupted"
    assert_equal_state(state_of(one, step + 2), state_of(other, step + 2))
    assert lines_of(one) == lines_of(other)


def test_wandb_marks_the_run_as_preempted(in_step, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    in_step(4, lambda: send(signal.SIGTERM))
    words = [word for word in RUN if not word.startswith("tracker")]
    words += ["tracker=wandb", "job.sample_every=null", "job.log_every=1"]
    assert go(tmp_path, *words, "output_dir=run") == 143, output_of(tmp_path)
    assert_stopped(tmp_path, 5)
    (file,) = run_files(tmp_path / "run")
    record = read_run(file)
    assert record.preempting
    assert record.exit_code == 1
    assert [row["step"] for row in record.rows if "train/loss" in row] == [1, 2, 3, 4, 5]


# more than one signal


def test_signal_repeated_at_once_counts_once(in_step, tmp_path):
    """To the group of processes, and once more from the parent."""
    in_step(4, lambda: [send(signal.SIGTERM), send(signal.SIGTERM)])
    assert go(tmp_path, *RUN, "output_dir=run") == 143, output_of(tmp_path)
    assert_stopped(tmp_path, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGUSR1, signal.SIGTERM),
        pytest.param((signal.SIGTERM, signal.SIGINT), marks=pytest.mark.slow),
    ],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)
def test_second_signal_stops_at_once(numbers, in_step, uninterrupted, tmp_path, monkeypatch):
    def insist():
        for number in numbers:
            send(number)
        raise AssertionError("it should have stopped")

    in_step(4, insist)
    assert go(tmp_path, *RUN, "output_dir=run") == 128 + numbers[1], output_of(tmp_path)
    name = signal.Signals(numbers[1]).name
    error = f"stopped at once by a second signal, {name}"
    expected = {"state": "preempted", "step": 4, "saved": 3, "error": error}
    assert status_of(tmp_path / "run") == expected
    assert steps_saved(tmp_path / "run") == [3]
    assert "Traceback" not in output_of(tmp_path)
    assert_goes_on(tmp_path, uninterrupted, monkeypatch)


def test_sigterm_after_sigint_counts_as_an_echo_only_under_torchrun(in_step, tmp_path, monkeypatch):
    stop = signals.GracefulStop()
    for name, again in ((None, False), ("TORCHELASTIC_RUN_ID", True)):
        if name:
            monkeypatch.setenv(name, "x")
        with stop:
            stop.received = signal.SIGINT
            assert stop._is_echo(signal.SIGTERM, 0.1) is again
            assert not stop._is_echo(signal.SIGTERM, 60)
            stop.received = None


def test_same_signal_later_stops_at_once(in_step, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_ECHO_SECONDS", -1)
    in_step(4, lambda: [send(signal.SIGTERM), send(signal.SIGTERM)])
    assert go(tmp_path, *RUN, "output_dir=run") == 143, output_of(tmp_path)
    assert status_of(tmp_path / "run")["saved"] == 3


@pytest.mark.slow
def test_second_signal_during_a_checkpoint_leaves_no_damaged_file(
    uninterrupted, tmp_path, monkeypatch
):
    from ddpm.runner.checkpoints import checkpoint

    write, count = checkpoint._File.write, iter(range(10**6))

    def insist(self, data):
        if next(count) == 60:
            send(signal.SIGTERM)
            send(signal.SIGINT)
        return write(self, data)

    monkeypatch.setattr(checkpoint._File, "write", insist)
    status = go(tmp_path, *RUN, "output_dir=run")
    assert status == 130, output_of(tmp_path)
    assert status_of(tmp_path / "run")["state"] == "preempted"
    for path in (tmp_path / "run").glob("checkpoints/*"):
        torch.load(path, weights_only=True)
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    assert_goes_on(tmp_path, uninterrupted, monkeypatch)


# at other moments than in a step


@pytest.mark.slow
def test_signals_during_a_preview_or_checkpoint_wait_for_its_end(
    uninterrupted, tmp_path, monkeypatch
):
    """Both are finished; the run stops after the following step."""
    preview = Train.preview

    def ask(self, run, fabric, network, step):
        send(signal.SIGTERM)
        preview(self, run, fabric, network, step)

    monkeypatch.setattr(Train, "preview", ask)
    assert go(tmp_path, *RUN, "output_dir=run") == 143, output_of(tmp_path)
    assert (tmp_path / "run" / "samples" / "step-000006.png").exists()
    assert_stopped(tmp_path, 7)
    monkeypatch.undo()
    from ddpm.runner.checkpoints import checkpoint

    sync = checkpoint.sync_folder

    def ask_too(folder):
        there = {path.name for path in folder.glob("step-*.pt")}
        if "step-0000009.pt" in there and "step-0000010.pt" not in there:
            send(signal.SIGUSR2)
        sync(folder)

    monkeypatch.setattr(checkpoint, "sync_folder", ask_too)
    assert go(tmp_path, "resume=run") == 128 + signal.SIGUSR2, output_of(tmp_path)
    assert_stopped(tmp_path, 10)
    assert 9 in steps_saved(tmp_path / "run")
    assert_goes_on(tmp_path, uninterrupted, monkeypatch)


def test_signal_in_the_last_step_ends_as_done(in_step, uninterrupted, tmp_path):
    """No step is left, so the run is not preempted."""
    in_step(STEPS - 1, lambda: send(signal.SIGTERM))
    assert go(tmp_path, *RUN, "output_dir=run") == 0, output_of(tmp_path)
    assert_same_run(tmp_path / "run", uninterrupted)


# handlers that were there before


def requeue(home, number, frame=None):
    """As the handler of a cluster: records the state of the run and ends the process."""
    with open(home / "requeued.txt", "a") as file:
        status, locked = status_of(home / "run"), run_dir.is_locked(home / "run")
        file.write(f"{number} {status['state']} {status.get('saved')} {locked}\n")
    raise SystemExit(77)


def with_handler(monkeypatch, home, number, handler):
    """Install a handler in the runs that are started, before run.py begins."""
    from ddpm import cli

    main = cli.main

    def begin():
        signal.signal(number, handler)
        main()

    monkeypatch.setattr(cli, "main", begin)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, *slowly([signal.SIGTERM, signal.SIGUSR2])], ids=lambda n: n.name
)
def test_earlier_handler_is_called_after_everything_is_saved(
    number, in_step, uninterrupted, tmp_path, monkeypatch
):
    with_handler(monkeypatch, tmp_path, number, lambda n, frame: requeue(tmp_path, n))
    in_step(4, lambda: [send(number), send(number)])
    assert go(tmp_path, *RUN, "output_dir=run") == 77, output_of(tmp_path)
    assert (tmp_path / "requeued.txt").read_text() == f"{number:d} preempted 5 False\n"
    assert_goes_on(tmp_path, uninterrupted, monkeypatch)


def test_earlier_handler_that_returns_does_not_change_the_exit(in_step, tmp_path, monkeypatch):
    def note(number, frame):
        (tmp_path / "called").write_text(status_of(tmp_path / "run")["state"])

    with_handler(monkeypatch, tmp_path, signal.SIGTERM, note)
    in_step(4, lambda: send(signal.SIGTERM))
    assert go(tmp_path, *RUN, "output_dir=run") == 143, output_of(tmp_path)
    assert (tmp_path / "called").read_text() == "preempted"
    assert_stopped(tmp_path, 5)


def test_earlier_handler_is_called_when_sampling_is_stopped(uninterrupted, tmp_path, monkeypatch):
    save = sampling.save_image

    def ask(image, file):
        save(image, file)
        if file.name == "000001.png":
            send(signal.SIGUSR1)

    words = ["job=sample", "hardware=cpu", "tracker=local", f"checkpoint={uninterrupted}"]
    words += ["job.num_samples=5", "job.batch_size=2", "output_dir=run"]
    with_handler(monkeypatch, tmp_path, signal.SIGUSR1, lambda n, frame: requeue(tmp_path, n))
    monkeypatch.setattr(sampling, "save_image", ask)
    assert go(tmp_path, *words) == 77, output_of(tmp_path)
    assert (tmp_path / "requeued.txt").read_text() == "10 preempted None False\n"
    monkeypatch.undo()
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    assert len(list((tmp_path / "run" / "samples").iterdir())) == 5


def test_handlers_are_restored_and_called_once():
    called = []
    before = {number: signal.signal(number, lambda n, frame: called.append(n)) for number in ALL}
    try:
        own = {number: signal.getsignal(number) for number in ALL}
        with GracefulStop() as stop:
            assert not stop.wanted
            assert all(signal.getsignal(number) != own[number] for number in ALL)
            send(signal.SIGUSR2)
            send(signal.SIGUSR2)
            assert stop.wanted
            assert called == []
        assert called == [signal.SIGUSR2]
        assert {number: signal.getsignal(number) for number in ALL} == own
        with GracefulStop() as stop:
            assert not stop.wanted, "each has signals of its own"
        assert called == [signal.SIGUSR2]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_no_handlers_are_installed_outside_the_main_thread():
    found = []

    def use():
        with GracefulStop() as stop:
            found.append((stop.wanted, signal.getsignal(signal.SIGTERM)))
        with signals.to_children():
            found.append((False, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [(False, before), (False, before)]


# two runs in one folder


@pytest.mark.slow
def test_folder_of_a_running_run_is_locked(in_step, uninterrupted, tmp_path, monkeypatch):
    def hold():
        (tmp_path / "holds").touch()
        while not (tmp_path / "go").exists():
            time.sleep(0.01)

    in_step(4, hold)
    child = start(tmp_path, *RUN, "output_dir=run")
    until((tmp_path / "holds").exists, child)
    monkeypatch.undo()
    before = {name: (tmp_path / "run" / name).read_bytes() for name in files_of(tmp_path / "run")}
    for words in (["resume=run"], [*RUN, "output_dir=run", "resume=auto"]):
        assert go(tmp_path, *words) == 2
        line = output_of(tmp_path).splitlines()[-1]
        assert line.startswith(f"run: this run is being worked on by process {child} on ")
    assert go(tmp_path, *RUN, "output_dir=run") == 2
    refusal = output_of(tmp_path).splitlines()[-2:]
    assert refusal[0].startswith("output_dir=run: the folder holds a run that is running now, by ")
    assert f"process {child} on " in refusal[0]
    assert "job=watch output_dir=run" in refusal[0]
    assert "resume" not in "".join(refusal)
    after = {name: (tmp_path / "run" / name).read_bytes() for name in files_of(tmp_path / "run")}
    assert after == before
    (tmp_path / "go").touch()
    assert wait(child) == 0, output_of(tmp_path)
    assert_same_run(tmp_path / "run", uninterrupted)


# several processes

PAIR = [
    *(word for word in TINY if not word.startswith(("hardware", "job.max_steps", "job.save"))),
    *("hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu", "job.save_every=null"),
    *("job.max_steps=100000", "job.num_samples=2", "output_dir=run"),
]


@contextlib.contextmanager
def as_at_a_terminal():
    """While open, SIGHUP is not ignored, as it may be where these tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def pair(tmp_path):
    """Two processes that train, and the one that started them: (it, their ids)."""
    with as_at_a_terminal():
        parent = process(tmp_path, *PAIR, start_new_session=True)
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert parent.poll() is None, parent.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = [int(line) for line in children_of(parent.pid)]
    assert len(children) >= 2
    yield parent, children
    with contextlib.suppress(ProcessLookupError):
        os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids, seconds=60):
    deadline = time.monotonic() + seconds
    while any(lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process stays"
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(
    ("ask", "number"),
    [*((os.kill, n) for n in (1, 2, 15)), *((os.killpg, n) for n in (1, 2, 15))],
    ids=["parent+HUP", "parent+INT", "parent+TERM", "group+HUP", "group+INT", "group+TERM"],
)
@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(ask, number, pair, tmp_path):
    parent, children = pair
    ask(parent.pid, number)
    out, err = parent.communicate(timeout=120)
    assert parent.returncode == 128 + number, out + err
    assert "Traceback" not in err
    assert gone(children)
    status = status_of(tmp_path / "run")
    step = status["step"]
    assert status == {"state": "preempted", "step": step, "saved": step}
    assert steps_saved(tmp_path / "run") == [step]
    assert f"saved after step {step}" in out
    assert [at for at, _ in losses_of(tmp_path / "run")] == list(range(1, step + 1))
    state = state_of(tmp_path / "run", step)
    assert state["made_with"]["processes"] == 2


@pytest.mark.slow
def test_children_whose_parent_was_killed_save_and_end(pair, tmp_path):
    parent, children = pair
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert gone(children)
    status = status_of(tmp_path / "run")
    assert status["state"] == "preempted"
    assert steps_saved(tmp_path / "run") == [status["step"]]
    assert not run_dir.is_locked(tmp_path / "run")
    end = [f"job.max_steps={status['step'] + 2}", "hardware=cpu"]
    assert go(tmp_path, "resume=run", *end) == 0, output_of(tmp_path)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in rows]
    assert steps == list(range(1, status["step"] + 3))
    shutil.rmtree(tmp_path / "run")
