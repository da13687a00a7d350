"""Runs under a real Slurm, with the script of docs/clusters.md.

Slurm ends a job in five ways. `scontrol requeue`, a failing node and preemption send SIGTERM and
requeue the job. Preemption with a grace time sends SIGTERM as well, but counts a job that ends
within that time as completed, so the script requeues it; likewise near the time limit, announced by
SIGUSR1. A job ended by `scancel` is not requeued.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
from support import slurm_jobs
from support.base import ROOT, TINY
from support.runs import assert_equal_state, losses_of, state_of, status_of
from support.slurm_cluster import KILL_SECONDS, available, cluster, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),  # a sweep of four jobs, two at a time, beside other programs
    pytest.mark.skipif(not available(), reason="Slurm is not installed"),
]

STEPS = 1200
CHANGED = ("job.max_steps", "job.save_every", "job.log_every")
RUN = [
    *(word for word in TINY if not word.startswith(CHANGED)),
    *(f"job.max_steps={STEPS}", "job.save_every=100", "job.log_every=50", "job.sample_every=null"),
]
DDP = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]

SCRIPT = """#!/bin/bash
#SBATCH --requeue --open-mode=append --signal={signal} {options}
srun {python} {run} {words} resume=auto
case $? in 138 | 143) scontrol requeue "$SLURM_JOB_ID" ;; esac
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(home, *words, options="", signal="USR1@120"):
    """Submit the script: the id of its job, and the run's folder."""
    run = {"python": sys.executable, "run": ROOT / "run.py", "words": " ".join(words)}
    (home / "job.sh").write_text(SCRIPT.format(options=options, signal=signal, **run))
    job = slurm_jobs.submit("job.sh", cwd=home)
    return job, home / "outputs" / "train" / f"slurm-{job}"


def uninterrupted(home, *words):
    """The same run without interruption."""
    command = [sys.executable, str(ROOT / "run.py"), *words, "output_dir=uninterrupted"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    subprocess.run(command, cwd=home, env=environment, check=True, capture_output=True)
    return home / "uninterrupted"


def wait_for_lines(run, count):
    until(lambda: slurm_jobs.logged(run) >= count)


def assert_done(job, home, run, restarts, steps=STEPS):
    """The job has completed after so many restarts, and its run equals the uninterrupted one."""
    end = slurm_jobs.ended(job)
    output = (home / f"slurm-{job}.out").read_text()
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("COMPLETED", "0:0", restarts), (
        output
    )
    assert output.count("preempted") == int(restarts)
    assert status_of(run)["state"] == "done"
    assert_equal_state(state_of(run, steps), state_of(home / "uninterrupted", steps))
    assert losses_of(run) == losses_of(home / "uninterrupted")


@pytest.mark.parametrize("grace", [0, KILL_SECONDS])
def test_script_is_requeued_and_resumes_exactly(home, grace):
    """Requeued by hand, preempted by an urgent job, and signalled as near the time limit."""
    uninterrupted(home, *RUN)
    with cluster(grace=grace):
        job, run = submit(home, *RUN)
        wait_for_lines(run, 3)
        slurm_jobs.requeue(job)
        wait_for_lines(run, 9)
        slurm_jobs.preempt(job, home)
        wait_for_lines(run, 15)
        slurm_jobs.cancel(job, "--signal=USR1")
        assert_done(job, home, run, "3")


def test_job_is_requeued_near_its_time_limit(home):
    """The step of the limit is not known in advance; the number of steps is set after it."""
    common = [word for word in RUN if not word.startswith("job.max_steps")]
    words = home / "words"
    words.write_text("job.max_steps=1000000")
    with cluster():
        job, run = submit(home, *common, "$(cat words)", options="--time=1", signal="USR1@20")
        until(lambda: slurm_jobs.show(job)["Restarts"] == "1", 120)
        steps = status_of(run)["saved"] + 50
        assert steps > 50
        words.write_text(f"job.max_steps={steps}")
        uninterrupted(home, *common, words.read_text())
        assert_done(job, home, run, "1", steps)


def test_two_tasks_train_one_run(home):
    words = [*RUN, *DDP]
    uninterrupted(home, *words)
    with cluster():
        job, run = submit(home, *words, options="--nodes=1 --ntasks-per-node=2")
        wait_for_lines(run, 3)
        slurm_jobs.requeue(job)
        assert_done(job, home, run, "1")
        assert json.loads((run / "about.json").read_text())["processes"] == 2


def test_a_cancelled_job_saves_and_is_not_requeued(home):
    with cluster():
        job, run = submit(home, *RUN)
        wait_for_lines(run, 3)
        slurm_jobs.cancel(job)
        end = slurm_jobs.ended(job)
        assert (end["JobState"], end["Restarts"]) == ("CANCELLED", "0")
        assert slurm_jobs.queued()[job] == "CANCELLED"
    status = status_of(run)
    assert status["state"] == "preempted"
    assert status["step"] == status["saved"] > 0


@pytest.mark.parametrize("how", ["no srun", "srun of one task", "a shell of salloc"])
def test_single_slurm_task_starts_all_processes_of_the_run(home, how):
    """Slurm may announce more tasks for a job than it starts."""
    words = [sys.executable, ROOT / "run.py", *TINY, *DDP, "output_dir=run"]
    start = {
        "no srun": ["sbatch", "--wait", "--ntasks-per-node=2", "--wrap"],
        "srun of one task": ["sbatch", "--wait", "--ntasks-per-node=1", "--wrap"],
        "a shell of salloc": ["salloc", "--ntasks-per-node=2", "bash", "-c"],
    }[how]
    text = "srun " * (how == "srun of one task") + " ".join(map(str, words))
    with cluster():
        result = subprocess.run([*start, text], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + "".join(
        p.read_text() for p in home.glob("slurm*")
    )
    assert status_of(home / "run")["state"] == "done"
    assert json.loads((home / "run" / "about.json").read_text())["processes"] == 2


# a sweep

SWEEP_SECONDS = 200  # timeout
SWEEP = ["-m", "sweep=study", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
SWEEP += ["hydra.launcher.poll_seconds=1", *RUN, "seed=1,2,3,4"]


def jobs_of(home):
    return [home / "outputs" / "sweep" / "study" / f"{n}-convnet-digits" for n in range(4)]


def folders_by_id(home):
    """The folders of the jobs by their ids in Slurm."""
    files = {job: job / "slurm.json" for job in jobs_of(home)}
    return {json.loads(f.read_text())["job"]: job for job, f in files.items() if f.exists()}


def launch(home, *words):
    command = [sys.executable, str(ROOT / "run.py"), *SWEEP, *words]
    with open(home / "launcher.txt", "a") as log:
        return subprocess.Popen(command, cwd=home, stdout=log, stderr=subprocess.STDOUT)


def test_sweep_with_a_requeued_job_gives_the_results_of_an_uninterrupted_one(home):
    with cluster():
        launcher = launch(home)
        until(lambda: len(folders_by_id(home)) == 4)
        disturbed = folders_by_id(home)[slurm_jobs.requeue_one(folders_by_id(home))]
        assert launcher.wait(SWEEP_SECONDS) == 0, (home / "launcher.txt").read_text()
    assert "\n4 done\n" in (home / "launcher.txt").read_text()
    logs = "".join(p.read_text() for p in (disturbed.parent / ".slurm").glob("*_log.out"))
    assert logs.count("preempted") == 1
    for seed, job in enumerate(jobs_of(home), start=1):
        undisturbed = uninterrupted(home, *RUN, f"seed={seed}")
        assert_equal_state(state_of(job, STEPS), state_of(undisturbed, STEPS))
        assert losses_of(job) == losses_of(undisturbed)
        undisturbed.rename(home / f"uninterrupted-{seed}")


def test_a_stopped_launcher_leaves_its_jobs_and_a_new_one_reattaches(home):
    with cluster():
        launcher = launch(home)
        until(lambda: len(folders_by_id(home)) == 4)
        job_ids = set(folders_by_id(home))
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(SWEEP_SECONDS) == 128 + signal.SIGINT
        assert "the same command watches them again" in (home / "launcher.txt").read_text()
        assert launch(home).wait(SWEEP_SECONDS) == 0, (home / "launcher.txt").read_text()
        assert set(slurm_jobs.queued()) <= job_ids, "none was submitted twice"
    assert all(status_of(job)["state"] == "done" for job in jobs_of(home))
