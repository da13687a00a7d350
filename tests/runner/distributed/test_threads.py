"""The number of threads of a run: that of idle cores, and the same on resume."""

import pytest
import torch
from support.base import TINY

from ddpm.runner.distributed import threads
from ddpm.runner.distributed.threads import Usage


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of so many cores, some of which are busy while a run starts."""

    def make(cores=8, busy=0.0, own=0.9, seconds=4.0, limit="max 100000", variable=None):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if variable:
            monkeypatch.setenv("OMP_NUM_THREADS", variable)
        monkeypatch.setattr(threads, "own_cores", lambda: set(range(cores)))
        monkeypatch.setattr(threads, "_default", cores)
        monkeypatch.setattr(threads, "_at_start", Usage(100.0, 50.0, 7.0))
        now = Usage(100.0 + seconds, 50.0 + (busy + own) * seconds, 7.0 + own * seconds)
        monkeypatch.setattr(threads, "usage", lambda: now)
        quota = tmp_path / "cpu.max"
        quota.write_text(limit)
        monkeypatch.setattr(threads, "_QUOTA", quota)

    return make


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, 8),
        ({"busy": 0.3}, 8),
        ({"busy": 1.1}, 7),
        ({"cores": 2, "busy": 1.0}, 1),
        ({"cores": 2, "busy": 2.0}, 1),
        ({"busy": 20.0}, 1),
        ({"busy": 5.0, "seconds": 0.1}, 8),  # too short a time to tell
        ({"limit": "150000 100000"}, 2),
        ({"cores": 64, "busy": 40.0, "limit": "400000 100000"}, 4),
        ({"busy": 5.0, "variable": "8"}, 8),
    ],
)
def test_number_of_threads_is_the_number_of_idle_cores(machine, given, count):
    machine(**given)
    assert threads.choose("auto")[0] == count


def test_cores_left_to_other_programs_are_reported(machine):
    machine(cores=4, busy=1.2)
    count, why = threads.choose("auto")
    assert count == 3
    assert "1.2 of 4 cores" in why
    assert "hardware.threads=4" in why
    assert threads.choose(2) == (2, None)
    machine(cores=4)
    assert threads.choose("auto") == (4, None)


def test_all_cores_are_used_if_the_load_is_unknown(machine, monkeypatch, tmp_path):
    machine(cores=4, busy=2.0)
    monkeypatch.setattr(threads, "usage", lambda: None)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "none")
    assert threads.choose("auto") == (4, None)


def test_load_counts_only_cores_of_this_process(monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "own_cores", lambda: {1, 3})
    stat = tmp_path / "stat"
    monkeypatch.setattr(threads, "_STAT", stat)
    lines = ["cpu  9 9 9 9 9 9 9 9 0 0", "cpu0 900 0 0 1 0 0 0 0 0 0"]
    lines += ["cpu1 100 20 30 7 7 4 5 7 0 0", "cpu3 200 0 0 1 0 0 0 0 0 0", "intr 5 5", "ctxt 88"]
    stat.write_text("\n".join(lines))
    monkeypatch.setattr("ddpm.runner.distributed.threads.os.sysconf", lambda name: 100)
    assert threads.usage().total == pytest.approx((100 + 20 + 30 + 4 + 5 + 200) / 100)
    stat.unlink()
    assert threads.usage() is None


def test_waiting_threads_spin_briefly_unless_configured_otherwise(monkeypatch):
    monkeypatch.setattr(threads, "_at_start", None)
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is put back
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # set by the user
    threads.begin()
    assert "GOMP_SPINCOUNT" not in threads.os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.begin()
    assert threads.os.environ["GOMP_SPINCOUNT"] == threads.SPINS
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    threads.begin()
    assert threads.os.environ["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "null"])
def test_a_wrong_number_of_threads_is_refused(run, value):
    status, _, err = run(*TINY, f"hardware.threads={value}", "output_dir=run")
    assert status == 2
    assert err.startswith("hardware.threads=")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_resumed_run_keeps_its_number_of_threads(run, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "own_cores", lambda: {0, 1, 2})
    try:
        assert run(*TINY, "hardware.threads=3", "output_dir=run")[0] == 0
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(threads, "choose", lambda wanted: (1, None))
        words = ["resume=run", "job.max_steps=8", "hardware.threads=auto"]
        status, out, err = run(*words)
        assert (status, torch.get_num_threads()) == (0, 3), err
        assert "note" not in out
        monkeypatch.setattr(threads, "own_cores", lambda: {0})  # a smaller machine
        status, out, err = run("resume=run", "job.max_steps=9", "hardware.threads=auto")
        assert (status, torch.get_num_threads()) == (0, 1), err
        assert "threads is 1, was 3" in out
    finally:
        torch.set_num_threads(before)
