"""Processes that die, hang or run out of memory: the run ends with advice, or continues.

Covered are a process that reads ahead and is killed, at any moment of a step, or that does not
answer; readers whose parent is killed, and the lock of its run; a device whose memory is short;
previews and trackers that raise. Readers have one thread each, as a fork beside OpenMP must. What a
driver does when a GPU's memory is short cannot be tried here: torch's error is raised by hand.
Launchers of sweeps that start processes of their own are no part of this program.
"""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from support.crash import TINY, go, output_of, start, until, wait
from support.recorder import Recorder
from support.runs import assert_equal_state, files_of, losses_of, state_of, status_of
from support.trackers import GRID, own_warnings
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ddpm.data.base import ImageData
from ddpm.jobs import train
from ddpm.jobs.train import Train
from ddpm.pipeline import Pipeline
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.distributed import signals
from ddpm.runner.execution import run
from ddpm.runner.runs import run_dir
from ddpm.trackers.multi import Trackers
from ddpm.training import loader

RUN = [*TINY, "output_dir=run"]
READ_AHEAD = [*RUN, "job.num_workers=1"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """An uninterrupted run."""
    home = tmp_path_factory.mktemp("uninterrupted")
    assert go(home, *RUN) == 0, output_of(home)
    return home / "run"


def assert_same(one, other):
    assert status_of(one) == status_of(other) == {"state": "done", "step": 6, "saved": 6}
    assert_equal_state(state_of(one, 6), state_of(other, 6))
    assert losses_of(one) == losses_of(other)


@pytest.fixture(autouse=True)
def _short_status_interval(monkeypatch):
    """Readers and their parent check on each other every 0.2 seconds instead of every 5."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(torch.utils.data._utils.worker, "MP_STATUS_CHECK_INTERVAL", 0.2)


def at_read(monkeypatch, number, do):
    """Call `do` in a reader before it loads the n-th batch."""
    real, asked = ImageData.__getitems__, []

    def read(self, indices):
        asked.append(indices)
        if get_worker_info() is not None and len(asked) == number:
            do()
        return real(self, indices)

    monkeypatch.setattr(ImageData, "__getitems__", read)


def at_call(monkeypatch, owner, name, number, do):
    """Call `do` before the n-th call."""
    real, calls = getattr(owner, name), []

    def call(*arguments, **options):
        calls.append(name)
        if len(calls) == number:
            do()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


# readers


def assert_ended_by_a_lost_reader(home):
    status = status_of(home / "run")
    assert status["state"] == "failed"
    assert "job.num_workers=1: a worker process died" in status["error"]
    assert "job.num_workers=0" in status["error"]
    assert status["error"] in output_of(home)
    assert "Traceback" not in output_of(home)


@pytest.mark.slow
def test_killed_reader_ends_the_run_which_resumes_without_readers(
    uninterrupted, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        at_read(patch, 5, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert go(tmp_path, *READ_AHEAD) == 2, output_of(tmp_path)
    assert_ended_by_a_lost_reader(tmp_path)
    assert go(tmp_path, "resume=run", "job.num_workers=0") == 0, output_of(tmp_path)
    assert_same(tmp_path / "run", uninterrupted)


class Slow(Dataset):
    """Its item 3 takes a second and then calls `last`."""

    def __init__(self, last=lambda: None):
        self.last = last

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            time.sleep(1)
            self.last()
        return torch.tensor([index])


def read(data, **options):
    return [int(item) for item in loader.batches_of(DataLoader(data, batch_size=None, **options))]


def test_reader_that_dies_while_its_batch_is_awaited_is_noticed():
    dying = Slow(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        read(dying, num_workers=2, timeout=0.1)


def test_a_batch_may_take_longer_than_the_checks():
    assert read(Slow(), num_workers=2, timeout=0.1) == list(range(8))


def test_an_error_of_the_data_set_is_not_that_of_a_lost_reader(monkeypatch, tmp_path):
    def fail():
        raise OSError("the share timed out")

    at_read(monkeypatch, 2, fail)
    assert go(tmp_path, *READ_AHEAD) != 0
    assert "the share timed out" in output_of(tmp_path)
    assert "a worker process died" not in output_of(tmp_path)


def kill_reader():
    """Python then calls the handler of SIGCHLD in the middle of the next operation."""
    (reader,) = multiprocessing.active_children()
    os.kill(reader.pid, signal.SIGKILL)
    while lives(reader.pid):
        time.sleep(0.001)
    time.sleep(0.01)


PLACES = {"step": (Train, "loss", 4), "log": (run.Run, "log", 3), "save": (checkpoint, "_write", 2)}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_reader_killed_at_a_random_time(place, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, *PLACES[place], kill_reader)
        assert go(tmp_path, *READ_AHEAD) == 2, output_of(tmp_path)
    assert_ended_by_a_lost_reader(tmp_path)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert go(tmp_path, "resume=run", "job.num_workers=0") == 0, output_of(tmp_path)
    assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_unresponsive_reader_ends_the_run(uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loader, "CHECK_SECONDS", 0.2)
        patch.setattr(loader, "WORKER_SECONDS", 0.5)
        at_read(patch, 5, lambda: time.sleep(5))
        assert go(tmp_path, *READ_AHEAD) == 2, output_of(tmp_path)
    assert_ended_by_a_lost_reader(tmp_path)
    assert "timed out" in output_of(tmp_path)
    assert go(tmp_path, "resume=run", "job.num_workers=0") == 0, output_of(tmp_path)
    assert_same(tmp_path / "run", uninterrupted)


def test_a_reader_has_one_thread(tmp_path, monkeypatch):
    file = tmp_path / "threads"
    at_read(monkeypatch, 2, lambda: file.write_text(str(torch.get_num_threads())))
    assert go(tmp_path, *READ_AHEAD) == 0, output_of(tmp_path)
    assert file.read_text() == "1"


def children_of(process):
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in listed.split()]


def lives(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_readers_of_a_killed_run_end_and_hold_no_lock(tmp_path):
    words = [*READ_AHEAD, "job.num_workers=2", "job.max_steps=100000", "job.save_every=null"]
    child = start(tmp_path, *words)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0, child)
    readers = children_of(child)
    assert len(readers) >= 2
    assert run_dir.is_locked(tmp_path / "run")
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -9
    assert not run_dir.is_locked(tmp_path / "run")
    deadline = time.monotonic() + 60
    while any(map(lives, readers)):
        assert time.monotonic() < deadline, "a reader outlives the run"
        time.sleep(0.01)


ASKING = [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 10))]


@pytest.mark.parametrize("number", ASKING)
def test_signal_to_the_process_group_does_not_kill_readers_before_the_run(
    number, uninterrupted, tmp_path
):
    """A cluster, systemd and a terminal send it to all processes; the step needs its images."""
    words = [*READ_AHEAD, "job.num_workers=2", "job.max_steps=100000", "job.save_every=null"]
    child = start(tmp_path, *words)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.stat().st_size > 0, child)
    readers = children_of(child)
    os.killpg(child, number)
    assert wait(child) == 128 + number, output_of(tmp_path)
    status = status_of(tmp_path / "run")
    assert status == {"state": "preempted", "step": status["step"], "saved": status["step"]}
    assert not any(map(lives, readers))


@pytest.mark.parametrize("number", ASKING)
def test_signal_to_a_reader_that_starts_does_not_kill_it(
    number, uninterrupted, tmp_path, monkeypatch
):
    """Not even while torch's handler is installed, which would end it."""
    real = signals.leave_to_parent

    def interrupted():
        os.kill(os.getpid(), number)
        real()

    monkeypatch.setattr(signals, "leave_to_parent", interrupted)
    assert go(tmp_path, *READ_AHEAD) == 0, output_of(tmp_path)
    assert_same(tmp_path / "run", uninterrupted)


def test_reader_ends_on_repeated_sigterm():
    """The run sends SIGTERM to one that does not answer, and again when it ends."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def read():
        signals.leave_to_parent()
        ready.set()
        time.sleep(600)

    reader = context.Process(target=read)
    reader.start()
    assert ready.wait(60)
    for number in (1, 2, 10, 12, signal.SIGTERM):
        os.kill(reader.pid, number)
        reader.join(0.1)
        assert reader.is_alive(), number
    reader.terminate()
    reader.join(60)
    assert reader.exitcode == -signal.SIGTERM


# memory


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nAnd more.")


def test_out_of_memory_error_gives_advice(uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, Train, "loss", 6, out_of_memory)  # two calls measure what it needs
        assert go(tmp_path, *RUN) == 2
    words = output_of(tmp_path)
    assert "job.batch_size=8: not enough memory" in words
    assert "(CUDA out of memory. Tried to allocate 20.00 GiB.)" in words
    assert "a larger job.accumulate_grad_batches (now 1)" in words
    assert "Traceback" not in words
    status = status_of(tmp_path / "run")
    assert (status["state"], status["saved"]) == ("failed", 2)
    assert go(tmp_path, "resume=run") == 0, output_of(tmp_path)
    assert_same(tmp_path / "run", uninterrupted)


# previews


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("two\nlines"), "two lines"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["error", "memory"],
)
def test_failing_preview_does_not_end_the_run(error, reason, uninterrupted, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(train, "preview_grid", fail)
    assert go(tmp_path, *RUN, "job.sample_every=3") == 0, output_of(tmp_path)
    assert [line for line in output_of(tmp_path).splitlines() if "No preview" in line] == [
        f"No preview of step {step}; the run continues: {reason}" for step in (3, 6)
    ]
    assert_same(tmp_path / "run", uninterrupted)
    assert files_of(uninterrupted) - files_of(tmp_path / "run") == {"samples/step-000006.png"}


@pytest.mark.slow
def test_missed_preview_is_drawn_on_resume(uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train, "preview_grid", lambda *_: 1 / 0)
        assert go(tmp_path, *RUN, "job.sample_every=3") == 0
    assert go(tmp_path, "resume=run", "job.max_steps=7") == 0, output_of(tmp_path)
    picture = "samples/step-000006.png"
    assert (tmp_path / "run" / picture).read_bytes() == (uninterrupted / picture).read_bytes()


@pytest.mark.parametrize("last", [False, True])
def test_a_preview_is_stopped_unless_it_is_the_last(last, uninterrupted, tmp_path, monkeypatch):
    """The signal arrives at its third step; the run's checkpoint is of the step before it."""
    every = 6 if last else 3
    words = [*RUN, f"job.sample_every={every}", "job.save_every=100"]
    with monkeypatch.context() as patch:
        real, calls = Pipeline._predict, []

        def predict(self, *args):
            calls.append(args)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, *args)

        patch.setattr(Pipeline, "_predict", predict)
        assert go(tmp_path, *words) == (0 if last else 143), output_of(tmp_path)
    picture = "samples/step-000003.png"
    if not last:
        assert status_of(tmp_path / "run") == {"state": "preempted", "step": 3, "saved": 3}
        assert not (tmp_path / "run" / picture).exists()
        assert go(tmp_path, "resume=run") == 0, output_of(tmp_path)
        assert (tmp_path / "run" / picture).exists()
    assert_same(tmp_path / "run", uninterrupted)
    picture = "samples/step-000006.png"
    assert (tmp_path / "run" / picture).read_bytes() == (uninterrupted / picture).read_bytes()


# trackers


class Broken(Recorder):
    """Raises in the given methods."""

    def __init__(self, *places):
        super().__init__()
        for place in places:
            setattr(self, place, self.fail)

    def fail(self, *_):
        self.calls.append("failed")
        raise OSError("gone")


PLACES_OF_TRACKERS = [["log"], ["log_image"], ["close"], ["log", "log_image", "close"]]


@pytest.mark.parametrize("places", PLACES_OF_TRACKERS, ids=" ".join)
def test_tracker_may_fail_in_any_call(places, caplog):
    bad, good = Broken(*places), Recorder()
    with Trackers([bad, good]) as trackers:
        trackers.log(1, {"train/loss": 0.1})
        trackers.log_image(1, "samples", GRID)
        trackers.log(2, {"train/loss": 0.1})
    assert good.calls == [1, "samples", 2, "done"]
    assert bad.calls.count("failed") == (2 if len(places) == 3 else 1)  # it is closed all the same
    assert own_warnings(caplog) == ["The tracker Broken is switched off, the run goes on: gone"]


def test_run_with_a_failing_tracker_has_the_same_weights(uninterrupted, tmp_path, monkeypatch):
    real = run.open_trackers

    def opened(*arguments, **options):
        trackers = real(*arguments, **options)
        trackers._trackers.append(broken := Broken("log", "log_image", "close"))
        trackers._live.append(broken)
        return trackers

    monkeypatch.setattr(run, "open_trackers", opened)
    assert go(tmp_path, *RUN) == 0, output_of(tmp_path)
    assert output_of(tmp_path).count("switched off") == 1
    assert_same(tmp_path / "run", uninterrupted)
    assert files_of(tmp_path / "run") == files_of(uninterrupted)
