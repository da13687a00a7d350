"""The end of a terminal (SIGHUP): it stops a run as SIGTERM does, unless it is ignored (nohup).

A terminal that is closed, or an ssh that is cut, sends SIGHUP to all processes that it started;
the shell sends it once more, and systemd sends SIGTERM and SIGHUP together when a session ends.
test_signals.py has what holds for all signals alike.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from support.base import ROOT
from support.crash import TINY, go, output_of, start, until, wait
from support.runs import losses_of, status_of

from ddpm import cli
from ddpm.runner.distributed import signals
from ddpm.runner.runs import run_dir
from ddpm.runner.sweeps.launchers import worker
from ddpm.training.step import Step

HUP, TERM, INT = signal.SIGHUP, signal.SIGTERM, signal.SIGINT
RUN = [*TINY, "output_dir=run"]


@pytest.fixture
def sent(monkeypatch):
    """Send signals to the runs that are started, in their fifth step."""

    def send(*numbers):
        step = Step.__call__

        def call(self, number, *batch):
            if number == 4:
                for one in numbers:
                    os.kill(os.getpid(), one)
            return step(self, number, *batch)

        monkeypatch.setattr(Step, "__call__", call)

    return send


def with_handler(monkeypatch, handler):
    """Set a handler of SIGHUP in the runs that are started, before run.py begins."""
    main = cli.main
    monkeypatch.setattr(cli, "main", lambda: (signal.signal(HUP, handler), main()))


@pytest.mark.parametrize(
    "numbers",
    [
        (HUP, HUP),
        pytest.param((TERM, HUP), marks=pytest.mark.slow),
        pytest.param((HUP, TERM), marks=pytest.mark.slow),
        pytest.param((HUP, HUP, TERM, HUP), marks=pytest.mark.slow),
    ],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)
def test_signals_at_the_end_of_a_session_count_as_one(numbers, sent, tmp_path):
    sent(*numbers)
    assert go(tmp_path, *RUN) == 128 + numbers[0], output_of(tmp_path)
    assert status_of(tmp_path / "run") == {"state": "preempted", "step": 5, "saved": 5}
    assert "stopped  by a signal, saved after step 5" in output_of(tmp_path)


def test_sigint_after_sighup_stops_immediately(sent, tmp_path):
    sent(HUP, INT)
    assert go(tmp_path, *RUN) == 128 + INT, output_of(tmp_path)
    status = status_of(tmp_path / "run")
    assert (status["state"], status["step"], status["saved"]) == ("preempted", 4, 4)
    assert status["error"] == "stopped at once by a second signal, SIGINT"


def test_repeated_sighup_and_sigterm_count_as_echoes(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    same = {(HUP, HUP), (TERM, TERM), (TERM, HUP), (HUP, TERM)}
    for first, second in itertools.product((HUP, TERM, signal.SIGUSR1, INT), (HUP, TERM, INT)):
        stop = signals.GracefulStop()
        stop._handle(first, None)
        assert stop._is_echo(second, 0.1) is ((first, second) in same)
        assert not stop._is_echo(second, 10)


# nohup


def test_sighup_does_not_stop_a_run_under_nohup(sent, tmp_path, monkeypatch):
    with_handler(monkeypatch, signal.SIG_IGN)
    sent(HUP)
    assert go(tmp_path, *RUN) == 0, output_of(tmp_path)
    assert status_of(tmp_path / "run") == {"state": "done", "step": 6, "saved": 6}


@pytest.mark.slow
def test_other_signals_stop_a_run_under_nohup(sent, tmp_path, monkeypatch):
    with_handler(monkeypatch, signal.SIG_IGN)
    sent(HUP, TERM, HUP)
    assert go(tmp_path, *RUN) == 128 + TERM, output_of(tmp_path)
    assert status_of(tmp_path / "run") == {"state": "preempted", "step": 5, "saved": 5}


@pytest.mark.parametrize("way", [signals.GracefulStop, signals.to_children])
def test_ignored_sighup_stays_ignored_and_handlers_are_restored(way):
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        for _ in range(2):
            with way():
                assert signal.getsignal(HUP) == signal.SIG_IGN
                assert signal.getsignal(TERM) != before
                os.kill(os.getpid(), HUP)
            assert signal.getsignal(HUP) == signal.SIG_IGN
        called = []
        signal.signal(HUP, lambda number, frame: called.append(number))
        own = signal.getsignal(HUP)
        with way():
            assert signal.getsignal(HUP) != own
            os.kill(os.getpid(), HUP)
            assert called == []
        assert called == [HUP], "when all is saved"
        assert signal.getsignal(HUP) == own
    finally:
        signal.signal(HUP, before)


# jobs of a sweep


def in_fork(action, blocked=()):
    """The exit status of a forked process that calls `action`.

    Args:
        blocked: signals that no thread of the copy takes: libraries may start one after a fork.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    process = os.fork()
    if process == 0:
        status = 99
        try:
            status = action() or 0
        finally:
            os._exit(status)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("number", [HUP, INT])
def test_job_discards_signals_pending_before_it_left_the_terminal(number):
    def act(*, again):
        signal.signal(HUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, worker.TERMINAL_SIGNALS)
        os.kill(os.getpid(), number)
        assert signal.sigpending() == {number}
        worker._leave_terminal()
        assert os.getsid(0) == os.getpid()
        assert signal.sigpending() == set()
        if again:
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                return 1
            return 2

    blocked = worker.TERMINAL_SIGNALS
    assert in_fork(lambda: act(again=False), blocked) == 0
    assert in_fork(lambda: act(again=True), blocked) == (-HUP if number == HUP else 2)


def test_sighup_does_not_stop_a_job_under_nohup():
    def act():
        signal.signal(HUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, worker.TERMINAL_SIGNALS)
        worker._leave_terminal()
        os.kill(os.getpid(), HUP)

    assert in_fork(act) == 0


@pytest.mark.slow
def test_a_sweep_stops_with_its_job(sent, tmp_path):
    sent(HUP)
    assert go(tmp_path, "-m", *TINY, "sweep=study", "seed=1,2") == 128 + HUP, output_of(tmp_path)
    first, second = sorted((tmp_path / "outputs" / "sweep" / "study").glob("*-*"))
    assert status_of(first)["state"] == "preempted"
    assert not (second / "status.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "nohup"])
def test_sighup_stops_parallel_jobs_unless_ignored(ignored, tmp_path, monkeypatch):
    with_handler(monkeypatch, signal.SIG_IGN if ignored else signal.SIG_DFL)
    words = ["-m", *TINY, "sweep=study", "seed=1,2", "hydra/launcher=slots", "job.log_every=50"]
    words += ["job.max_steps=3000", "job.save_every=null", "job.sample_every=null"]
    launcher = start(tmp_path, *words)
    jobs = tmp_path / "outputs" / "sweep" / "study"
    until(lambda: sum(map(run_dir.is_locked, jobs.glob("*-*"))) == 2, launcher)
    os.killpg(launcher, HUP)
    assert wait(launcher) == (0 if ignored else 129), output_of(tmp_path)
    state = "done" if ignored else "preempted"
    assert [status_of(job)["state"] for job in jobs.glob("*-*")] == [state, state]
    assert ("stopping 2 jobs" in output_of(tmp_path)) is not ignored
    assert "failed  " not in output_of(tmp_path)


@pytest.mark.slow
def test_sighup_during_the_start_of_jobs_leaves_no_failed_job(tmp_path, monkeypatch):
    """Before they have left the terminal."""
    with_handler(monkeypatch, signal.SIG_DFL)
    words = ["-m", *TINY, "sweep=study", "seed=1,2", "hydra/launcher=slots"]
    launcher = start(tmp_path, *words)
    until(
        lambda: (tmp_path / "out.txt").exists() and "start    seed=2" in output_of(tmp_path),
        launcher,
    )
    os.killpg(launcher, HUP)
    assert wait(launcher) == 129, output_of(tmp_path)
    for job in (tmp_path / "outputs" / "sweep" / "study").glob("*-*"):
        assert not (job / "status.json").exists() or status_of(job)["state"] == "preempted"
    assert "failed  " not in output_of(tmp_path)


# a real terminal


def until_lines(log, number, seconds=120):
    deadline = time.monotonic() + seconds
    while not log.exists() or log.read_text().count("\n") < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "nohup "], ids=["plain", "nohup"])
@pytest.mark.parametrize("suffix", ["", " | tee log", " &"], ids=["alone", "tee", "background"])
def test_closing_the_terminal_stops_a_run_unless_under_nohup(prefix, suffix, tmp_path):
    """A shell in a terminal starts the run; then the terminal is closed and the shell ends."""
    words = [*RUN, "job.max_steps=100000", "job.save_every=null", "job.sample_every=null"]
    line = f"{prefix}{sys.executable} {ROOT / 'run.py'} {' '.join(words)}{suffix}\n"
    environment = {"DDPM_DATA": str(tmp_path / "data"), "HOME": str(tmp_path)}
    master, terminal = os.openpty()

    def own_terminal():
        signal.signal(HUP, signal.SIG_DFL)
        os.login_tty(terminal)

    shell = subprocess.Popen(
        ["bash", "--norc", "-i"],
        cwd=tmp_path,
        env=os.environ | environment,
        preexec_fn=own_terminal,
        pass_fds=[terminal],
    )
    os.close(terminal)
    os.write(master, line.encode())
    log = tmp_path / "run" / "metrics.jsonl"
    until_lines(log, 3)
    os.close(master)
    shell.wait()
    if prefix:
        assert run_dir.is_locked(tmp_path / "run")
        until_lines(log, log.read_text().count("\n") + 3)
        holder = (tmp_path / "run" / "run.lock").read_text()
        os.kill(int(holder.split()[1]), TERM)
    deadline = time.monotonic() + 60
    while run_dir.is_locked(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    status = status_of(tmp_path / "run")
    assert status == {"state": "preempted", "step": status["step"], "saved": status["step"]}
    assert [step for step, _ in losses_of(tmp_path / "run")] == list(range(1, status["step"] + 1))
