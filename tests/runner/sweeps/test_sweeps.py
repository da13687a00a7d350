"""Sweeps: repeating a command continues it, and each job equals the same run alone."""

import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from support.base import ROOT, TINY
from support.crash import go, output_of, start, until, wait
from support.runs import assert_equal_state, files_of, losses_of, metrics_of, state_of, status_of
from support.sweep_folders import jobs_of

from ddpm.errors import InputError
from ddpm.runner.checkpoints import checkpoint
from ddpm.runner.config.paths import check_sweep_name
from ddpm.runner.runs import run_dir
from ddpm.runner.sweeps import callback, folder, run_job
from ddpm.runner.sweeps.launchers import job_queue, scheduler, slots

QUICK = [word for word in TINY if not word.startswith("job.max_steps")] + ["job.max_steps=6"]
SWEEP = ["-m", *QUICK, "sweep=study"]


def times_of(jobs):
    return {name: (job / "metrics.jsonl").stat().st_mtime_ns for name, job in jobs.items()}


def test_repeating_a_command_skips_finished_jobs_and_adds_new_ones(run, tmp_path):
    status, out, err = run(*SWEEP, "seed=1,2")
    assert status == 0, out + err
    jobs = jobs_of(tmp_path)
    first_times = times_of(jobs)
    assert list(jobs) == ["0-convnet-digits", "1-convnet-digits"]
    status, out, err = run(*SWEEP, "seed=3,2,1")  # in another order
    assert status == 0, out + err
    assert "3 jobs in outputs/sweep/study: 2 done, 1 waiting" in out
    assert "\n3 done\nfolder   outputs/sweep/study\n" in out
    jobs = jobs_of(tmp_path)
    assert list(jobs) == ["0-convnet-digits", "1-convnet-digits", "2-convnet-digits"]
    assert first_times.items() <= times_of(jobs).items()
    seeds = [yaml.safe_load((job / "config.yaml").read_text())["seed"] for job in jobs.values()]
    assert seeds == [1, 2, 3]


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("job.num_workers=2", True),
        ("job.log_every=3", True),
        ("job.save_every=3", True),
        ("tracker=tensorboard", True),
        ("optimizer=adam", True),  # the default, given explicitly
        ("optimizer.lr=1e-4", False),
        ("optimizer=adamw", False),
        ("job.max_steps=7", False),
        ("hardware.precision=32-true", False),
        ("sampler.steps=3", False),
        ("hardware.timeout_minutes=5", True),
        ("team=example_lab", True),
        ("experiment=mnist", False),
    ],
)
def test_a_job_is_identified_by_what_its_result_depends_on(words, same, run, tmp_path, monkeypatch):
    monkeypatch.setattr(job_queue, "run_job", lambda job: None)  # only its folder matters
    run(*SWEEP, "seed=1")
    run(*SWEEP, "seed=1", words)
    assert len(jobs_of(tmp_path)) == (1 if same else 2)


def test_equal_jobs_of_a_command_run_once(run, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(job_queue, "run_job", ran.append)
    for _ in range(2):
        _, out, err = run(*SWEEP, "seed=1,1,2", "optimizer.lr=2e-4,0.0002")
        assert "2 jobs in outputs/sweep/study" in out, out + err
        (line,) = [line for line in out.splitlines() if line.startswith("once ")]
        assert line.endswith("1 (as 0), 3 (as 0), 4 (as 0), 5 (as 2)")
    assert [job.number for job in ran] == [0, 2] * 2
    assert len(jobs_of(tmp_path)) == 2


@pytest.mark.slow
def test_jobs_that_differ_only_in_incidental_keys_have_a_folder_each(run, tmp_path, monkeypatch):
    monkeypatch.setattr(job_queue, "run_job", lambda job: None)
    for _ in range(2):
        run(*SWEEP, "seed=1", "job.num_workers=0,1")
        assert len(jobs_of(tmp_path)) == 2


@pytest.mark.slow
def test_killed_sweep_resumes_to_the_results_of_an_uninterrupted_one(tmp_path):
    words = [*SWEEP, "seed=1,2,3"]
    (tmp_path / "uninterrupted").mkdir()
    (tmp_path / "killed").mkdir()
    assert go(tmp_path / "uninterrupted", *words) == 0, output_of(tmp_path / "uninterrupted")
    assert go(tmp_path / "killed", *words, crash="train.step:9") == -9
    jobs = jobs_of(tmp_path / "killed")
    assert len(jobs) == 3, "all exist before the first one runs"
    assert [folder_state(job) for job in jobs.values()] == ["done", "running", "waiting"]
    assert go(tmp_path / "killed", *words, crash="train.step:8") == -9  # in the third
    assert go(tmp_path / "killed", *words) == 0, output_of(tmp_path / "killed")
    uninterrupted = jobs_of(tmp_path / "uninterrupted")
    for name, job in jobs_of(tmp_path / "killed").items():
        assert_equal_state(state_of(job, 6), state_of(uninterrupted[name], 6))
        assert losses_of(job) == losses_of(uninterrupted[name])
        assert files_of(job / "samples") == files_of(uninterrupted[name] / "samples")


def folder_state(job):
    return run_dir.read_status(job).get("state", "waiting")


def test_a_failed_job_is_tried_again_in_its_folder(run, tmp_path):
    words = [*SWEEP, "data=folder", f"data.root={tmp_path / 'pictures'}", "seed=1,2"]
    words += ["data.channels=1", "data.image_size=16"]
    (tmp_path / "pictures").mkdir()
    status, out, _ = run(*words)
    assert status == 1
    assert "\n2 failed\n" in out
    assert all("error" in status_of(job) for job in jobs_of(tmp_path).values())
    from PIL import Image

    for n in range(3):
        Image.new("L", (20, 20), 80 * n).save(tmp_path / "pictures" / f"{n}.png")
    status, out, err = run(*words)
    assert status == 0, out + err
    assert list(jobs_of(tmp_path)) == ["0-convnet-folder", "1-convnet-folder"]
    assert all("error" not in status_of(job) for job in jobs_of(tmp_path).values())


@pytest.mark.slow
def test_invalid_job_is_reported_and_the_others_run(run, tmp_path):
    status, out, _ = run(*SWEEP, "job.batch_size=8,-1")
    assert status == 1
    assert "job.batch_size=-1: must be" in out
    assert "\n1 done, 1 failed\n" in out
    valid, invalid = jobs_of(tmp_path).values()
    assert files_of(invalid) == {"status.json"}
    assert "must be" in status_of(invalid)["error"]
    run(*SWEEP, "job.batch_size=8,-1")
    assert list(jobs_of(tmp_path).values()) == [valid, invalid], "reported again in the same folder"


@pytest.mark.slow
def test_jobs_keep_the_configuration_of_the_start(run, tmp_path, monkeypatch):
    """A file under conf/ that changes while the first job runs does not affect the second."""
    conf = tmp_path / "mine" / "schedule"
    conf.mkdir(parents=True)
    text = (ROOT / "conf" / "schedule" / "linear.yaml").read_text()
    (conf / "own.yaml").write_text(text.replace("0.02", "0.03"))
    original = job_queue.run_job

    def run_job(job):
        original(job)
        (conf / "own.yaml").write_text(text.replace("0.02", "0.04"))

    monkeypatch.setattr(job_queue, "run_job", run_job)
    status, out, err = run("--config-dir", "mine", *SWEEP, "schedule=own", "seed=1,2")
    assert status == 0, out + err
    for job in jobs_of(tmp_path).values():
        config = yaml.safe_load((job / "config.yaml").read_text())
        assert config["schedule"]["beta_end"] == 0.03
        assert state_of(job, 6)["hparams"]["schedule"]["beta_end"] == 0.03
    # Started again, those are other jobs.
    assert run("--config-dir", "mine", *SWEEP, "schedule=own", "seed=1,2")[0] == 0
    assert len(jobs_of(tmp_path)) == 4


@pytest.mark.slow
def test_two_commands_share_a_sweep(tmp_path):
    """Neither runs a job that the other runs."""
    words = [*SWEEP, "job.max_steps=400", "job.sample_every=null", "seed=1,2"]
    child = start(tmp_path, *words)
    until(lambda: any(map(run_dir.is_locked, jobs_of(tmp_path).values())), child)
    other = start(tmp_path, *words)
    assert wait(child) in (0, 1)
    assert wait(other) in (0, 1)
    assert "is being worked on by another process" in output_of(tmp_path)
    assert [status_of(job)["state"] for job in jobs_of(tmp_path).values()] == ["done", "done"]
    for job in jobs_of(tmp_path).values():
        assert [row["step"] for row in metrics_of(job)] == list(range(1, 401)), "each step once"


def test_jobs_are_named_after_the_network_of_their_checkpoint(run, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "other")
    monkeypatch.setattr(job_queue, "run_job", lambda job: None)  # only its folder matters
    run("-m", "job=sample", "checkpoint=run,other", "tracker=local", "sweep=study")
    assert list(jobs_of(tmp_path)) == ["0-convnet-digits", "1-convnet-digits"]
    assert (tmp_path / "outputs" / "sweep" / "study" / "0-convnet-digits").is_dir()


@pytest.mark.slow
def test_sampling_jobs_are_identified_by_their_run_and_step(run, tiny, tmp_path):
    words = ["-m", "job=sample", f"checkpoint={tiny}", "job.num_samples=2", "tracker=local"]
    words += ["sweep=grids", "sampler=ddim,dpm_solver", "sampler.steps=2"]
    assert run(*words)[0] == 0
    assert len(jobs_of(tmp_path, "grids")) == 2
    status, out, err = run(*words, "sampler.spacing=uniform,trailing")
    assert status == 0, out + err
    tiny.rename(tmp_path / "moved")
    moved = [
        word.replace(f"checkpoint={tiny}", f"checkpoint={tmp_path / 'moved'}") for word in words
    ]
    status, out, err = run(*moved)
    assert out.count("was done before") == 2, out + err


@pytest.mark.slow
@pytest.mark.parametrize(
    "fail_point", ["run.filled:2", pytest.param("run.created:2", marks=pytest.mark.slow)]
)
def test_a_sweep_killed_while_it_assigns_folders_continues(fail_point, tmp_path):
    assert go(tmp_path, *SWEEP, "seed=1,2,3", crash=fail_point) == -9
    assert go(tmp_path, *SWEEP, "seed=1,2,3") == 0, output_of(tmp_path)
    assert list(jobs_of(tmp_path)) == [f"{n}-convnet-digits" for n in range(3)]
    study = tmp_path / "outputs" / "sweep" / "study"
    assert {path.name for path in study.glob(".*")} == {".lock"}


def test_a_sweep_of_invalid_jobs_does_not_start(run, tmp_path):
    status, _, err = run(*SWEEP, "seed=x,y")
    assert status == 2
    assert "seed=x: must be" in err
    assert "seed=y: must be" in err
    assert jobs_of(tmp_path) == {}


def test_refused_jobs_are_named_at_the_start_and_at_the_end(run, tmp_path, monkeypatch):
    monkeypatch.setattr(job_queue, "run_job", lambda job: None)
    status, out, _ = run(*SWEEP, "job.batch_size=8,-1", "seed=1,2")
    assert status == 1
    for number, seed in ((2, 1), (3, 2)):
        assert f"refused  job {number}, job.batch_size=-1 seed={seed}\n" in out
    last = out.splitlines()[-1]
    assert last.startswith("refused  2 of 4 jobs")
    assert "2 (job.batch_size=-1 seed=1), 3 (job.batch_size=-1 seed=2)" in last


@pytest.mark.slow
def test_record_of_a_refused_job_is_removed_when_no_longer_requested(run, tmp_path, monkeypatch):
    monkeypatch.setattr(job_queue, "run_job", lambda job: None)
    run(*SWEEP, "job.batch_size=8,-1")
    assert len(jobs_of(tmp_path)) == 2
    run(*SWEEP, "job.batch_size=8")
    assert len(jobs_of(tmp_path)) == 1


@pytest.mark.slow
def test_job_locked_by_another_process_is_not_marked_as_failed(
    run, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(job_queue, "run_job", lambda job: None)
    run(*SWEEP, "seed=1")
    (job,) = jobs_of(tmp_path).values()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDPM_DATA", str(data_dir))
    monkeypatch.setattr(run_dir, "is_locked", lambda path: False)  # a moment earlier
    with run_dir.lock(job):
        _, out, _ = run(*SWEEP, "seed=1")
    assert "is being worked on by another process" in out
    assert not (job / "status.json").exists()


@pytest.mark.slow
def test_finished_jobs_with_explicit_output_dirs_are_skipped(run, tmp_path):
    words = [*SWEEP, "seed=1", "output_dir=a,b"]
    assert run(*words)[0] == 0
    status, out, err = run(*words)
    assert status == 0, out + err
    assert out.count("was done before") == 2
    assert re.search(r"^a +output_dir=a .* done$", out, re.MULTILINE), out
    assert jobs_of(tmp_path) == {}
    status, out, err = run(*SWEEP, "seed=1,2", "output_dir=a")
    assert "output_dir=a: the folder holds a run already" in out, "of another run"


@pytest.mark.slow
def test_a_team_can_choose_the_launcher(run, tmp_path, monkeypatch):
    (tmp_path / "mine" / "team").mkdir(parents=True)
    text = """# @package _global_
defaults:
  - override /hydra/launcher: slots
hydra:
  launcher: {cores_per_job: 1, partition: gpu}
"""
    (tmp_path / "mine" / "team" / "lab.yaml").write_text(text)
    runners = []
    monkeypatch.setattr(
        scheduler.ParallelRunner, "run", lambda runner, queue: runners.append(runner)
    )
    run("--config-dir", "mine", *SWEEP, "team=lab", "seed=1,2")
    assert [type(runner).__name__ for runner in runners] == ["Slots"]
    assert (
        run("--config-dir", "mine", *SWEEP, "team=lab", "hydra/launcher=serial", "seed=1")[0] == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize("same_process", [True, False])
def test_a_third_party_launcher_ends_with_the_same_table(same_process, run, tmp_path, monkeypatch):
    """Jobs of other processes are read from their folders."""
    if not same_process:
        original = run_job.run_job
        monkeypatch.setattr(run_job, "run_job", lambda job: (original(job), callback.jobs.clear()))
    words = [*SWEEP, "seed=1,2", "job.batch_size=8,-1"]
    words += ["hydra.launcher._target_=hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    status, out, err = run(*words)
    assert status == 1, out + err
    table = out[out.index("\njob ") + 1 :].splitlines()
    assert [line.split()[:2] for line in table[1:5]] == [
        [str(n), f"job.batch_size={(8, -1)[n // 2]}"] for n in range(4)
    ]
    assert "2 done, 2 failed" in table
    assert "folder   outputs/sweep/study" in table


@pytest.mark.parametrize("name", ["a b", ".hidden", "a:b", "''"])
def test_an_invalid_name_of_a_sweep_is_refused(name, run, tmp_path):
    status, _, err = run("-m", *QUICK, f"sweep='{name}'" if name != "''" else "sweep=''")
    assert status == 2
    assert err.startswith("sweep=")
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_name_with_a_slash_is_its_folder(run, tmp_path):
    assert run("-m", *QUICK, "sweep=elsewhere/study", "seed=1")[0] == 0
    assert (tmp_path / "elsewhere" / "study" / "0-convnet-digits" / "config.yaml").is_file()


def test_sweep_without_multirun_is_refused(run, tmp_path):
    status, _, err = run(*QUICK, "sweep=study")
    assert status == 2
    assert "sweep=study: names a sweep" in err
    assert "-m" in err


def test_subdir_needs_the_number_of_the_job(run, tmp_path):
    status, out, err = run(*SWEEP, "hydra.sweep.subdir=one", "seed=1,2")
    assert status != 0
    assert "hydra.sweep.subdir" in out + err
    assert "${hydra:job.num}" in out + err


def test_a_sweep_under_torchrun_is_refused(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, err = run(*SWEEP, "seed=1,2")
    assert status == 2
    assert "hardware=ddp" in err


# the identity of a job


def test_missing_keys_of_later_versions_count_as_defaults(tiny):
    config = run_dir.read_config(tiny)
    older = {
        **config,
        "job": {k: v for k, v in config["job"].items() if k != "max_nonfinite_steps"},
    }
    assert folder.identity(older) == folder.identity(config)
    changed = {**config, "job": config["job"] | {"max_nonfinite_steps": 7}}
    assert folder.identity(changed) != folder.identity(config)


@pytest.mark.slow
def test_a_job_with_a_damaged_configuration_starts_again_in_another_folder(run, tmp_path):
    assert run(*SWEEP, "seed=1,2")[0] == 0
    first = jobs_of(tmp_path)["0-convnet-digits"]
    (first / "config.yaml").write_bytes(b"\x00\xff")
    status, out, err = run(*SWEEP, "seed=1,2")
    assert status == 0, out + err
    assert list(jobs_of(tmp_path)) == [f"{n}-convnet-digits" for n in range(3)]


def test_sweep_names_are_checked():
    for name in (None, "a", 1, True, 1.5, "study-1.b", "some/where"):
        check_sweep_name(name)
    for name in ("", "a b", "..", "-\n", "a/\0", [1]):
        with pytest.raises(InputError, match="sweep="):
            check_sweep_name(name)


# in parallel


@pytest.mark.slow
def test_slots_run_jobs_in_parallel_and_resume_them(tmp_path):
    words = [*SWEEP, "hydra/launcher=slots", "seed=1,2,3", "job.max_steps=300", "job.log_every=10"]
    words += ["job.save_every=10", "job.sample_every=null"]
    child = start(tmp_path, *words)
    until(lambda: sum(map(run_dir.is_locked, jobs_of(tmp_path).values())) == 2, child)
    until(
        lambda: any((job / "checkpoints").glob("*.pt") for job in jobs_of(tmp_path).values()), child
    )
    os.kill(child, signal.SIGINT)
    assert wait(child) == 128 + signal.SIGINT, output_of(tmp_path)
    states = sorted(folder_state(job) for job in jobs_of(tmp_path).values())
    assert states == ["preempted", "preempted", "waiting"], output_of(tmp_path)
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    assert "\n3 done\n" in output_of(tmp_path)
    for job in jobs_of(tmp_path).values():
        assert "steps" in (job / "job.log").read_text()
        assert [row["step"] for row in metrics_of(job)] == list(range(10, 301, 10))


# What Slurm sets in a batch script of four tasks, and in a step of one task that `srun` starts.
SCRIPT = {
    **{"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "job.sh", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1"},
    **{"SLURM_JOB_NODELIST": "node1", "SLURM_TASKS_PER_NODE": "4", "SLURM_CPUS_ON_NODE": "32"},
}
STEP = SCRIPT | {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.quick(1)
@pytest.mark.parametrize("variables", [SCRIPT, STEP], ids=["script", "step"])
def test_slots_run_a_sweep_inside_one_job_of_slurm(variables, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slots, "get_context", lambda _: multiprocessing.get_context("fork"))
    words = [*SWEEP, "hydra/launcher=slots", "seed=1,2", "resume=auto"]
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    for job in jobs_of(tmp_path).values():
        assert status_of(job)["state"] == "done"
        log = (job / "job.log").read_text()
        assert "device   cpu, 1 thread, 32-true" in log
    assert len(jobs_of(tmp_path)) == 2


@pytest.mark.slow
def test_slots_save_when_slurm_signals_every_process(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "get_context", lambda _: multiprocessing.get_context("fork"))
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    save = checkpoint.save  # takes longer than the launcher needs to forward the signal
    monkeypatch.setattr(checkpoint, "save", lambda *a, **k: (time.sleep(2), save(*a, **k))[1])
    words = [*SWEEP, "hydra/launcher=slots", "seed=1,2", "job.max_steps=100000"]
    words += ["job.sample_every=null", "job.save_every=null", "job.log_every=10"]
    child = start(tmp_path, *words)
    until(lambda: len([*tmp_path.rglob("metrics.jsonl")]) == 2, child)
    workers = Path(f"/proc/{child}/task/{child}/children").read_text().split()
    for number in [child, *map(int, workers)]:
        os.kill(number, signal.SIGUSR1)
    assert wait(child) == 128 + signal.SIGUSR1, output_of(tmp_path)
    states = [folder_state(job) for job in jobs_of(tmp_path).values()]
    assert states == ["preempted"] * 2, output_of(tmp_path)
    assert all([*job.glob("checkpoints/*.pt")] for job in jobs_of(tmp_path).values())


@pytest.mark.slow
def test_a_crash_frees_the_slot(tmp_path, monkeypatch):
    # Forked workers start faster; the slow tests spawn them.
    monkeypatch.setattr(slots, "get_context", lambda _: multiprocessing.get_context("fork"))
    words = [*SWEEP, "hydra/launcher=slots", "seed=1,2"]
    status = go(tmp_path, *words, crash="train.step:4")  # in each job
    assert status == 1, output_of(tmp_path)
    jobs = jobs_of(tmp_path).values()
    assert [status_of(job)["state"] for job in jobs] == ["failed", "failed"]
    assert all("by signal 9" in status_of(job)["error"] for job in jobs)
    assert go(tmp_path, *words) == 0, output_of(tmp_path)
    assert all("steps    2 to 6" in (job / "job.log").read_text() for job in jobs)


@pytest.mark.slow
def test_jobs_stopped_during_their_start_stay_waiting(tmp_path):
    words = [*SWEEP, "hydra/launcher=slots", "seed=1,2"]
    child = start(tmp_path, *words)
    until((tmp_path / "out.txt").exists, child)
    until(lambda: "start    seed=2" in output_of(tmp_path), child)
    os.kill(child, signal.SIGTERM)
    assert wait(child) == 128 + signal.SIGTERM
    assert [folder_state(job) for job in jobs_of(tmp_path).values()] == ["waiting"] * 2
    assert "failed  " not in output_of(tmp_path)


@pytest.mark.slow
def test_jobs_stop_when_their_launcher_is_killed(tmp_path):
    words = [*SWEEP, "hydra/launcher=slots", "seed=1,2", "job.max_steps=100000"]
    words += ["job.sample_every=null", "job.save_every=null", "job.log_every=50"]
    child = start(tmp_path, *words)
    until(lambda: sum(map(run_dir.is_locked, jobs_of(tmp_path).values())) == 2, child)
    os.kill(child, signal.SIGKILL)
    wait(child)
    deadline = time.monotonic() + 60
    while any(map(run_dir.is_locked, jobs_of(tmp_path).values())):
        assert time.monotonic() < deadline, "they outlive their launcher"
        time.sleep(0.05)
    assert all(folder_state(job) in ("preempted", "running") for job in jobs_of(tmp_path).values())


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hydra.launcher.gpus=[0,7]", "hydra.launcher.gpus=[0, 7]: GPU"),
        ("hydra.launcher.gpus=many", "hydra.launcher.gpus=many: must be auto"),
        ("hydra.launcher.jobs_per_gpu=0", "hydra.launcher.jobs_per_gpu=0: must be"),
        (
            "hydra.launcher.cores_per_job=9999",
            "hydra.launcher.cores_per_job=9999: this machine has",
        ),
    ],
)
def test_invalid_settings_of_slots_are_refused(words, message, run):
    status, out, err = run(*SWEEP, "hydra/launcher=slots", words, "seed=1,2")
    assert status == 2, out + err
    assert message in err
