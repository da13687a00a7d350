"""Jobs as jobs of Slurm, submitted by submitit; watched through their folders and `squeue`.

submitit's own watcher needs accounting (`sacct`), and polls only every few minutes.
"""

import contextlib
import json
import logging
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import JobPaths

import ddpm
from ddpm.errors import InputError
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.launchers.scheduler import ParallelRunner, RunningJob
from ddpm.runner.sweeps.launchers.slurm_task import Task

logger = logging.getLogger(__name__)

FILE = "slurm.json"  # in a job's folder: its id in Slurm
MAX_MISSES = 2  # polls without it until a job counts as gone from the queue
# States of jobs that are still to run, or run.
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD")
MAX_RESTARTS = 10**6  # of one job: no limit


@dataclass(eq=False)
class SlurmProcess(RunningJob):
    """A job by its id in Slurm."""

    job_id: str
    misses: int = 0  # consecutive polls without it in the queue


class Slurm(ParallelRunner[SlurmProcess]):
    """Submits jobs to Slurm. conf/hydra/launcher/slurm.yaml explains the settings.

    Args:
        sweep: its folder, on a file system that all machines share.
    """

    def __init__(
        self,
        sweep: Path,
        *,
        partition: str | None,
        account: str | None,
        qos: str | None,
        timeout_min: int,
        gpus_per_node: int | None,
        cpus_per_task: int,
        mem_gb: float | None,
        signal_delay_s: int,
        max_jobs: int,
        poll_seconds: float,
        setup: Sequence[str],
        additional: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        numbers = {"timeout_min": timeout_min, "cpus_per_task": cpus_per_task}
        for name, value in (numbers | {"max_jobs": max_jobs}).items():
            if type(value) is not int or value < 1:
                raise InputError(f"hydra.launcher.{name}={value}: must be a number from 1.")
        if not isinstance(setup, list) or any(not isinstance(line, str) for line in setup):
            raise InputError(
                f"hydra.launcher.setup={setup}: must be a list of lines: ['module load cuda']."
            )
        if not isinstance(additional, dict | None):
            raise InputError(
                f"hydra.launcher.additional={additional}: must be options of sbatch with their "
                "values: {constraint: a100}."
            )
        self.max_jobs, self.poll_seconds = max_jobs, poll_seconds
        self.gpus_per_node = gpus_per_node
        self.folder = sweep / ".slurm"
        self.options = {
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "stderr_to_stdout": True,
            "slurm_job_name": sweep.name,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_additional_parameters": {"requeue": True, **(additional or {})},
            "slurm_setup": [*setup, f"export PYTHONPATH={shlex.quote(str(_root()))}:$PYTHONPATH"],
        }
        optional = {"partition": partition, "account": account, "qos": qos}
        optional["mem"] = None if mem_gb is None else f"{mem_gb:g}GB"
        self.options |= {f"slurm_{name}": v for name, v in optional.items() if v is not None}
        self.last_poll = -float("inf")
        self.queued: Mapping[str, str] = {}

    def open(self) -> str:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # its files are executed
        self.queued = squeue()
        return f"slurm    up to {self.max_jobs} jobs at once; they go on without this command"

    def has_room(self) -> bool:
        return len(self.running) < self.max_jobs

    def reattach(self, job: Job) -> SlurmProcess | None:
        """The job if an earlier start of the sweep has submitted it and it is still queued."""
        job_id = _submitted_id(job)
        if job_id is None or self.queued.get(job_id) not in ALIVE:
            return None
        return self._process(job, job_id)

    def start(self, job: Job) -> SlurmProcess:
        """Submit a job.

        Raises:
            InputError: Slurm refuses it.
        """
        executor = submitit.AutoExecutor(
            folder=self.folder, cluster="slurm", slurm_max_num_timeout=MAX_RESTARTS
        )
        executor.update_parameters(**self.options, **resources(job, self.gpus_per_node))
        try:
            with _links_optional():
                job_id = executor.submit(Task(job)).job_id
        except (submitit.core.utils.FailedJobError, OSError) as error:
            reason = " ".join(str(error).split())[-300:]
            raise InputError(f"Slurm refuses the job ({reason}).") from None
        if job.folder is not None:
            try:
                (job.folder / FILE).write_text(json.dumps({"job": job_id}) + "\n")
            except OSError as error:
                logger.warning(
                    "%s: cannot record that it is job %s of Slurm (%s); another start of this "
                    "sweep would submit it a second time.",
                    *(job.folder, job_id, error.strerror),
                )
        return self._process(job, job_id)

    def _process(self, job: Job, job_id: str) -> SlurmProcess:
        log = self.folder / f"{job_id}_0_log.out"
        return SlurmProcess(job, f"as job {job_id} of Slurm", str(log), job_id)

    def ended(self, seconds: float) -> list[SlurmProcess]:
        """Jobs that are finished, or have left the queue without."""
        time.sleep(seconds)
        if time.monotonic() - self.last_poll < self.poll_seconds:
            return []
        self.last_poll = time.monotonic()
        try:
            self.queued = squeue()
        except InputError:  # perhaps for the moment
            return []
        for running in self.running:
            alive = self.queued.get(running.job_id) in ALIVE
            running.misses = 0 if alive else running.misses + 1
        return [
            running
            for running in self.running
            if running.misses >= MAX_MISSES or (running.misses and running.job.finished)
        ]

    def crash_reason(self, running: SlurmProcess) -> str | None:
        if running.job.state in ("done", "pruned", "failed", "preempted"):
            return None
        return (
            f"job {running.job_id} of Slurm is gone ({self.queued.get(running.job_id, 'unknown')})"
        )

    def release(self, running: SlurmProcess) -> None:
        running.job.succeeded = running.job.state == "done"
        if running.job.folder is not None:
            (running.job.folder / FILE).unlink(missing_ok=True)

    def stop(self, signal_number: int) -> str:
        """Leave the jobs to Slurm."""
        job_ids = " ".join(running.job_id for running in self.running)
        self.running.clear()
        return (
            "The jobs stay in the queue, and the same command watches them again; "
            f"scancel {job_ids} ends them."
        )


@contextlib.contextmanager
def _links_optional() -> Iterator[None]:
    """Let submitit work on file systems without symbolic links while open: after submitting a job,
    it replaces the script by a link, for people to read."""
    move = JobPaths.move_temporary_file

    def move_without_link(
        self: JobPaths, path: Path | str, name: str, keep_as_symlink: bool = False
    ) -> None:
        try:
            move(self, path, name, keep_as_symlink)
        except OSError:
            if not keep_as_symlink or Path(path).exists():
                raise

    JobPaths.move_temporary_file = move_without_link  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        JobPaths.move_temporary_file = move  # type: ignore[method-assign]


def resources(job: Job, gpus_per_node: int | None) -> dict[str, int]:
    """Nodes, tasks and GPUs for a job's hardware.

    On one node, a single task starts the processes of hardware=ddp itself; on several, Slurm starts
    a task per device.

    Raises:
        InputError: the number of devices is not given.
    """
    assert job.plan is not None
    hardware = job.plan.config["hardware"]
    nodes, count = hardware["num_nodes"], hardware["devices"]
    if count == "auto":
        raise InputError("hardware.devices=auto: Slurm needs the number of devices; set it.")
    requested = {"nodes": nodes, "tasks_per_node": count if nodes > 1 else 1}
    if gpus_per_node is None:
        gpus_per_node = count if hardware["accelerator"] in ("gpu", "cuda") else 0
    return requested | ({"slurm_gpus_per_node": gpus_per_node} if gpus_per_node else {})


def squeue() -> dict[str, str]:
    """Ids and states of the user's jobs that Slurm knows.

    Raises:
        InputError: Slurm does not answer.
    """
    command = ["squeue", "--me", "-hrt", "all", "-o", "%i %T"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise InputError("hydra/launcher=slurm: Slurm is not installed (no squeue).") from None
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise InputError(f"Slurm does not answer ({' '.join(reason.split())[:200]}).") from None
    lines = [line.strip() for line in result.stdout.splitlines()]
    return {job_id: state for job_id, _, state in (line.partition(" ") for line in lines) if state}


def _submitted_id(job: Job) -> str | None:
    """The id under which a job was submitted, if it was."""
    if job.folder is None:
        return None
    try:
        job_id = json.loads((job.folder / FILE).read_text())["job"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return job_id if isinstance(job_id, str) else None


def _root() -> Path:
    """The folder of the package, for a job to import it from any folder."""
    return Path(ddpm.__file__).parent.parent
