"""Consoles that fail: runs, samples and sweeps give the same results as with a working one.

Covered are full devices and files at their limit, pipes whose reader has gone or takes no more,
terminals that hang up, streams that are closed or were never there, and letters that an encoding
lacks; from the start of a run or in the middle of it, beside a signal, and in sweeps. What the
streams themselves do is in test_streams.py. Most runs are copies of this process; the last few are
real ones, for how Python begins and ends.
"""

import contextlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import termios
import time

import pytest
from support.base import ROOT
from support.crash import SAMPLE, TINY, go, output_of
from support.runs import assert_equal_state, files_of, losses_of, state_of, status_of

from ddpm import cli
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.execution import run as run_module
from ddpm.runner.runs import run_dir
from ddpm.runner.sweeps import run_job
from ddpm.runner.sweeps.launchers import job_queue, scheduler, slots, worker
from ddpm.trackers import local
from ddpm.training.step import Step

RUN = [*TINY, "output_dir=run", "job.sample_every=2"]
SWEEP = ["-m", *TINY, "sweep=study", "seed=1,2"]


def slowly(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run whose console works."""
    home = tmp_path_factory.mktemp("uninterrupted")
    assert go(home, *RUN) == 0, output_of(home)
    assert "console" not in about(home / "run")
    return home / "run"


def about(folder):
    return json.loads((folder / "about.json").read_text())


def assert_same(run, other):
    assert status_of(run) == status_of(other) == {"state": "done", "step": 6, "saved": 6}
    assert_equal_state(state_of(run, 6), state_of(other, 6))
    assert losses_of(run) == losses_of(other)
    assert files_of(run) == files_of(other)


# what may be wrong with standard output and standard error; each is called in the run's process


def lead_to(file, *numbers):
    for number in numbers or (1, 2):
        os.dup2(file, number)
    os.close(file)


def full(*numbers):
    lead_to(os.open("/dev/full", os.O_WRONLY), *numbers)


def without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    lead_to(writer)


def choked():
    """A pipe that takes no more for the moment."""
    _, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        lead_to(writer)


def hung_up():
    """A terminal that has been closed."""
    master, terminal = os.openpty()
    lead_to(terminal)
    os.close(master)


def at_its_limit():
    """A log on a disk without room, while the disk of the run has some."""
    size = 2**24
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.ftruncate(log, size)
    lead_to(log)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def missing():
    """As by `<&- >&- 2>&-`."""
    sys.stdin = sys.stdout = sys.stderr = None
    for number in range(3):
        with contextlib.suppress(OSError):  # closed with its stream
            os.close(number)


def closed():
    sys.stdout.close()
    sys.stderr.close()


def of_ascii():
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii")


WRONG = {
    "both full": full,
    "output full": lambda: full(1),
    "errors full": lambda: full(2),
    "no reader": without_reader,
    "choked": choked,
    "hung up": hung_up,
    "at its limit": at_its_limit,
    "missing": missing,
    "closed": closed,
}


@pytest.fixture
def begin_with(monkeypatch):
    """Do something in the processes of the runs that are started, before run.py begins."""
    main = cli.main

    def before(action):
        monkeypatch.setattr(cli, "main", lambda: (action(), main()))

    return before


@pytest.fixture
def in_step(monkeypatch):
    """Do something at the beginning of the n-th step of a run."""
    step = Step.__call__

    def at(n, action):
        def call(self, number, *batch):
            if number == n:
                action()
            return step(self, number, *batch)

        monkeypatch.setattr(Step, "__call__", call)

    return at


# one run


@pytest.mark.parametrize("wrong", ["both full", "missing", *slowly(*list(WRONG)[1:-2], "closed")])
def test_run_with_a_failing_console_gives_the_same_results(
    wrong, begin_with, uninterrupted, tmp_path
):
    begin_with(WRONG[wrong])
    assert go(tmp_path, *RUN) == 0
    assert_same(tmp_path / "run", uninterrupted)
    reasons = re.findall(r"(stdout|stderr): ", about(tmp_path / "run").get("console", ""))
    assert reasons == ([] if wrong == "errors full" else ["stdout"])


@pytest.mark.parametrize("wrong", ["no reader", *slowly("both full", "hung up", "choked")])
def test_console_failing_during_a_run_does_not_change_its_results(
    wrong, in_step, uninterrupted, tmp_path
):
    in_step(3, WRONG[wrong])
    assert go(tmp_path, *RUN) == 0, output_of(tmp_path)
    assert "step 1/6" in output_of(tmp_path)
    assert "step 6/6" not in output_of(tmp_path)
    assert_same(tmp_path / "run", uninterrupted)
    assert about(tmp_path / "run")["console"].startswith("stdout: ")


def test_progress_bar_in_a_closed_terminal_does_not_end_the_run(
    begin_with, in_step, uninterrupted, tmp_path
):
    ends = []

    def open_terminal():
        master, terminal = os.openpty()
        termios.tcsetwinsize(terminal, (24, 80))
        ends.append(master)
        lead_to(terminal)

    def hang_up():
        os.set_blocking(ends[0], False)
        with contextlib.suppress(BlockingIOError), open(shown, "ab") as file:
            while True:
                file.write(os.read(ends[0], 1000))
        os.close(ends[0])

    shown = tmp_path / "shown"
    begin_with(open_terminal)
    in_step(3, hang_up)
    assert go(tmp_path, *RUN, "job.save_every=1") == 0
    assert b"/6 [" in shown.read_bytes(), "there was a bar"
    assert losses_of(tmp_path / "run") == losses_of(uninterrupted)
    assert status_of(tmp_path / "run")["state"] == "done"
    note = about(tmp_path / "run")["console"]
    assert "stderr: Input/output error" in note


@pytest.mark.parametrize("number", [signal.SIGINT, *slowly(signal.SIGTERM)])
def test_run_is_saved_when_the_signal_also_ends_its_pipe_reader(
    number, in_step, uninterrupted, tmp_path, monkeypatch
):
    """As with `2>&1 | tee log`: Ctrl-C reaches tee, too, and it is the first to end."""
    with monkeypatch.context() as patch:
        step = Step.__call__

        def call(self, at, *batch):
            if at == 4:
                without_reader()
                os.kill(os.getpid(), number)
            return step(self, at, *batch)

        patch.setattr(Step, "__call__", call)
        assert go(tmp_path, *RUN) == 128 + number, output_of(tmp_path)
    assert status_of(tmp_path / "run") == {"state": "preempted", "step": 5, "saved": 5}
    assert about(tmp_path / "run")["console"] == "stdout: Broken pipe"
    assert go(tmp_path, "resume=run") == 0, output_of(tmp_path)
    assert_equal_state(state_of(tmp_path / "run", 6), state_of(uninterrupted, 6))
    assert losses_of(tmp_path / "run") == losses_of(uninterrupted)


@pytest.mark.parametrize("wrong", ["both full", *slowly("missing", "no reader")])
def test_exit_status_of_a_failed_run_does_not_depend_on_the_console(
    wrong, begin_with, tmp_path, monkeypatch
):
    begin_with(WRONG[wrong])

    def refuse(path, state):
        raise OSError(30, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", refuse)
        assert go(tmp_path, *RUN) == 2
    status = status_of(tmp_path / "run")
    assert (status["state"], status["step"]) == ("failed", 2)
    assert "Read-only file system" in status["error"]
    assert go(tmp_path, *TINY, "job.max_steps=-1") == 2, "a mistake"

    def fail(*arguments, **options):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(run_module.Run, "save", fail)
    assert go(tmp_path, *TINY, "output_dir=other") == 1, "with a traceback that nobody sees"
    assert status_of(tmp_path / "other")["error"] == "a fault of the program"


def test_path_with_characters_missing_from_the_console_encoding(
    begin_with, uninterrupted, tmp_path
):
    begin_with(of_ascii)
    assert go(tmp_path, *RUN[:-2], "output_dir='ñandú 日本'", "job.sample_every=2") == 0
    folder = tmp_path / "ñandú 日本"
    assert_same(folder, uninterrupted)
    assert "folder   \\xf1and\\xfa \\u65e5\\u672c" in output_of(tmp_path)
    assert "console" not in about(folder), "nothing is lost"


def test_the_last_step_is_saved_before_it_is_shown(begin_with, tmp_path):
    """To write may take for ever, where a terminal or a pipe takes nothing for the moment."""
    seen = tmp_path / "seen"

    class Looking:
        encoding = "utf-8"

        def write(self, text):
            if "step 6/6" in text:
                seen.write_text(str(sorted(os.listdir(tmp_path / "run" / "checkpoints"))))

        def flush(self):
            pass

    def look():
        sys.stdout = Looking()

    begin_with(look)
    assert go(tmp_path, *RUN) == 0
    assert "step-0000006.pt" in seen.read_text()


def test_output_of_libraries_is_dropped(begin_with, uninterrupted, tmp_path, monkeypatch):
    log = local.Local.log

    def call(self, step, metrics):
        print("a library's line", file=sys.stderr)
        log(self, step, metrics)

    begin_with(full)
    monkeypatch.setattr(local.Local, "log", call)
    assert go(tmp_path, *RUN) == 0
    assert_same(tmp_path / "run", uninterrupted)
    note = about(tmp_path / "run")["console"]
    assert note == "stdout: No space left on device; stderr: No space left on device"


def test_note_that_cannot_be_written_is_dropped(begin_with, uninterrupted, tmp_path, monkeypatch):
    def refuse(path, **facts):
        raise OSError(28, "No space left on device")

    begin_with(full)
    monkeypatch.setattr(run_dir, "note", refuse)
    assert go(tmp_path, *RUN) == 0
    assert status_of(tmp_path / "run") == status_of(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["both full", "missing", "no reader"])
def test_sampling_and_export_work_with_a_failing_console(
    wrong, begin_with, uninterrupted, tmp_path
):
    words = ["job.num_samples=3", "job.batch_size=2", f"checkpoint={uninterrupted}"]
    assert go(tmp_path, *SAMPLE, *words, "output_dir=seen") == 0, output_of(tmp_path)
    assert go(tmp_path, "job=export", f"checkpoint={uninterrupted}", "output_dir=export") == 0
    begin_with(WRONG[wrong])
    assert go(tmp_path, *SAMPLE, *words, "output_dir=unseen") == 0
    assert go(tmp_path, "job=export", f"checkpoint={uninterrupted}", "output_dir=silent") == 0
    assert status_of(tmp_path / "unseen")["state"] == "done"
    for one, other in (("seen", "unseen"), ("export", "silent")):
        assert files_of(tmp_path / one) == files_of(tmp_path / other)
        for name in files_of(tmp_path / one):
            if name.endswith((".png", ".safetensors")):
                read = [(tmp_path / folder / name).read_bytes() for folder in (one, other)]
                assert read[0] == read[1]


# commands whose output is all there is


@pytest.fixture
def without_output(run, monkeypatch):
    """Call run.py's entry in this process, where standard output fails: (exit status, stderr)."""

    def call(error, *arguments):
        class Out:
            encoding = "utf-8"

            def write(self, text):
                raise error

            def flush(self):
                raise error

        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Out() if error else None)
            status, _, err = run(*arguments)
        return status, err

    return call


FULL = OSError(28, "No space left on device"), "stdout: No space left on device\n"
HUNG_UP = OSError(5, "Input/output error"), "stdout: Input/output error\n"
READ = BrokenPipeError(32, "Broken pipe"), ""  # `| head` has what it wanted
MISSING = None, "stdout: I/O operation on closed file\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "cases"),
    [
        (["--help"], [FULL]),
        (["--hydra-help"], [READ]),
        (["--cfg", "job"], [MISSING, READ]),
        (["job=status", "runs=[run]"], [FULL, READ, HUNG_UP, MISSING]),
    ],
    ids=["help", "hydra-help", "cfg", "status"],
)
def test_printing_commands_fail_with_a_failing_console(words, cases, run, without_output, tmp_path):
    (tmp_path / "run").mkdir()
    run_dir.write_config(tmp_path / "run", {"choices": {"job": "train"}, "model": {}, "data": {}})
    for error, expected in cases:
        assert without_output(error, *words) == (1, expected)
    status, out, err = run(*words)
    assert (status, err) == (0, ""), "nothing of it stays"
    assert len(out) > 50


def test_report_is_written_without_a_console(tiny, without_output, tmp_path):
    words = ["job=report", f"runs=[{tiny}]", "output_dir=report", "tracker=local"]
    assert without_output(BrokenPipeError(), *words)[0] == 0
    assert "report.html" in files_of(tmp_path / "report")


# sweeps


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["no reader", *slowly("both full", "missing", "hung up")])
def test_sweep_runs_all_jobs_with_a_failing_console(wrong, begin_with, tmp_path):
    begin_with(WRONG[wrong])
    assert go(tmp_path, *SWEEP) == 0
    jobs = sorted((tmp_path / "outputs" / "sweep" / "study").glob("*-*"))
    assert [status_of(job)["state"] for job in jobs] == ["done", "done"]
    assert all("console" in about(job) for job in jobs)
    assert go(tmp_path, *SWEEP, "job.batch_size=8,-1") == 1, "two of four are refused"
    jobs = sorted((tmp_path / "outputs" / "sweep" / "study").glob("*-*"))
    assert sorted(status_of(job)["state"] for job in jobs) == ["done"] * 2 + ["failed"] * 2


def test_unrecorded_failure_of_a_job_does_not_stop_the_others(run, monkeypatch):
    tried = []

    def fail(plan):
        tried.append(plan)
        raise RuntimeError("a fault of the program")

    def refuse(path, **changes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_job, "execute", fail)
    monkeypatch.setattr(run_dir, "change_status", refuse)
    status, out, _ = run(*SWEEP)
    assert status == 1
    assert len(tried) == 2
    assert "\n2 failed\n" in out


@pytest.fixture
def job(run, tmp_path, monkeypatch):
    """A job of a sweep that has its folder, and has not begun."""
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(job_queue, "run_job", found.append)
        run("-m", *TINY, "sweep=study", "seed=1")
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("log", ["/dev/full", "missing/job.log", "."])
def test_job_continues_without_its_log(log, job, tmp_path):
    process = os.fork()
    if process == 0:
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        try:
            worker.work(job, str(tmp_path / log))
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert status_of(job.folder) == {"state": "done", "step": 6, "saved": 6}
    assert about(job.folder)["console"].startswith("stdout: ")


class Ended:
    """A process that has come to its end, in place of that of a job."""

    def __init__(self, target, args):
        self.job, self.log = args
        self.exitcode, self.sentinel = 0, None

    def start(self):
        run_dir.write_status(self.job.folder, "done", 6)

    def is_alive(self):
        return False

    def join(self):
        pass


def test_launcher_continues_if_it_cannot_write_files(job, tmp_path, monkeypatch):
    class Context:
        Process = Ended

    monkeypatch.setattr(slots, "get_context", lambda method: Context)
    monkeypatch.setattr(slots.connection, "wait", lambda sentinels, timeout: None)
    monkeypatch.setattr(sys, "stdout", None)
    (tmp_path / "file").touch()
    folder, job.folder = job.folder, None  # of a job without a folder, the log needs one
    runner = slots.Slots(tmp_path / "file")
    runner.free.append(slots.Slot("here"))
    with monkeypatch.context() as patch:
        patch.setattr(Ended, "start", lambda process: None)
        assert runner.start(job).log == str(tmp_path / "file" / "0" / "job.log")
    runner.free.append(slots.Slot("here"))
    job.folder = folder

    def refuse(path, **changes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_dir, "change_status", refuse)
    running = runner.start(job)
    job.succeeded = False
    run_dir.write_status(job.folder, "running", 3)
    assert scheduler.outcome(running, "its process was ended by signal 9").startswith("failed ")


# real processes


def log_lines(run):
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def bash(tmp_path, command, **options):
    """A line of bash in which $run is `python run.py` with a tiny run, started."""
    run = shlex.join([sys.executable, str(ROOT / "run.py"), *TINY, "output_dir=run"])
    environment = {"DDPM_DATA": str(tmp_path / "data"), "HOME": str(tmp_path), "run": run}
    return subprocess.Popen(
        ["bash", "-c", command], cwd=tmp_path, env=os.environ | environment, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection",
    [
        *(">/dev/full", "2>/dev/full", ">/dev/full 2>&1", "<&- >&- 2>&-", ">&-", "2>&-"),
        *(">/dev/full 2>&-", "| head -1", "2>&1 | true"),
    ],
)
def test_run_works_with_real_redirections(redirection, tmp_path):
    """Python's own flush at the end would make 120 of the status."""
    done = bash(tmp_path, f"set -o pipefail; ($run) {redirection}")
    assert done.wait(timeout=280) == 0
    assert status_of(tmp_path / "run") == {"state": "done", "step": 6, "saved": 6}


@pytest.mark.slow
def test_non_ascii_path_works_in_another_locale(tmp_path):
    for number, setting in enumerate(("PYTHONIOENCODING=ascii", "LC_ALL=C", "LC_ALL=POSIX")):
        words = f"\"output_dir='ñandú{number}'\""
        done = bash(tmp_path, f"{setting} $run {words}", stdout=subprocess.PIPE)
        out, _ = done.communicate(timeout=280)
        assert done.returncode == 0
        assert status_of(tmp_path / f"ñandú{number}")["state"] == "done"
        shown = "\\xf1and\\xfa" if number == 0 else "ñandú"
        assert f"done     6 steps in {shown}".encode() in out


@pytest.mark.slow
def test_ctrl_c_in_a_pipe_to_tee_saves_the_run(tmp_path):
    done = bash(
        tmp_path,
        "trap '' INT; (trap - INT; exec $run job.max_steps=100000 2>&1) | (trap - INT; tee log);"
        " exit ${PIPESTATUS[0]}",
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while log_lines(tmp_path / "run") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(done.pid, signal.SIGINT)
    assert done.wait(timeout=280) == 130
    status = status_of(tmp_path / "run")
    assert status == {"state": "preempted", "step": status["step"], "saved": status["step"]}


@pytest.mark.slow
@pytest.mark.parametrize("redirection", [">/dev/full 2>&1", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "words",
    [
        "hardware=ddp hardware.devices=2 hardware.accelerator=cpu",
        "tracker=[wandb,tensorboard]",
        "job.num_workers=2",
    ],
    ids=["ddp", "trackers", "readers"],
)
def test_processes_of_a_run_work_with_real_redirections(words, redirection, tmp_path):
    done = bash(tmp_path, f"$run {words} {redirection}")
    assert done.wait(timeout=280) == 0
    assert status_of(tmp_path / "run") == {"state": "done", "step": 6, "saved": 6}
    if "wandb" in words:
        assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
@pytest.mark.parametrize("redirection", [">/dev/full 2>&1", "<&- >&- 2>&-", "2>&1 | head -1"])
def test_parallel_sweep_works_with_real_redirections(redirection, tmp_path):
    words = "-m sweep=study seed=1,2 hydra/launcher=slots output_dir=null"
    done = bash(tmp_path, f"set -o pipefail; ($run {words}) {redirection}")
    assert done.wait(timeout=280) == 0
    jobs = sorted((tmp_path / "outputs" / "sweep" / "study").glob("*-*"))
    assert [status_of(job)["state"] for job in jobs] == ["done", "done"]
    assert all("done     6 steps" in (job / "job.log").read_text() for job in jobs)
