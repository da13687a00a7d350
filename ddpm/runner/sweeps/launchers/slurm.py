"""Jobs as jobs of Slurm, handed over by submitit; watched by their folders and by `squeue`.

submitit's own way to watch needs accounting (`sacct`), and waits minutes between two looks.
"""

import contextlib
import json
import logging
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import JobPaths

import ddpm
from ddpm.errors import InputError
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.launchers.scheduler import Runner, Running
from ddpm.runner.sweeps.launchers.slurm_task import Task

logger = logging.getLogger(__name__)

FILE = "slurm.json"  # in a job's folder: its number in the queue
GONE = 2  # so many looks without it mean that it has left the queue
# States of jobs that will do something yet.
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD")
FOR_EVER = 10**6  # starts of one job


@dataclass(eq=False)
class InQueue(Running):
    """A job by its number in Slurm."""

    number: str
    missed: int = 0  # looks at the queue in which it was not


class Slurm(Runner[InQueue]):
    """Hands jobs to Slurm. conf/hydra/launcher/slurm.yaml says what the knobs mean.

    Args:
        sweep: its folder, which all machines must see.
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
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies in it is run
        self.options = {
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "stderr_to_stdout": True,
            "slurm_job_name": sweep.name,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_additional_parameters": {"requeue": True, **(additional or {})},
            "slurm_setup": [*setup, f"export PYTHONPATH={shlex.quote(str(_root()))}:$PYTHONPATH"],
        }
        given = {"partition": partition, "account": account, "qos": qos}
        given["mem"] = None if mem_gb is None else f"{mem_gb:g}GB"
        self.options |= {f"slurm_{name}": v for name, v in given.items() if v is not None}
        self.looked = -float("inf")
        self.queued = queue()

    def describe(self) -> str:
        return f"slurm    up to {self.max_jobs} jobs at once; they go on without this command"

    def room(self) -> bool:
        return len(self.running) < self.max_jobs

    def adopt(self, job: Job) -> InQueue | None:
        """A job that an earlier start of the sweep has put into the queue, and is there still."""
        number = _number_of(job)
        if number is None or self.queued.get(number) not in ALIVE:
            return None
        return self._in_queue(job, number)

    def start(self, job: Job) -> InQueue:
        """Hand a job over.

        Raises:
            InputError: Slurm refuses it.
        """
        executor = submitit.AutoExecutor(
            folder=self.folder, cluster="slurm", slurm_max_num_timeout=FOR_EVER
        )
        executor.update_parameters(**self.options, **devices(job, self.gpus_per_node))
        try:
            with _links_optional():
                number = executor.submit(Task(job)).job_id
        except (submitit.core.utils.FailedJobError, OSError) as error:
            reason = " ".join(str(error).split())[-300:]
            raise InputError(f"Slurm refuses the job ({reason}).") from None
        if job.folder is not None:
            try:
                (job.folder / FILE).write_text(json.dumps({"job": number}) + "\n")
            except OSError as error:
                logger.warning(
                    "%s: cannot note that it is job %s of Slurm (%s); another start of this sweep "
                    "would submit it a second time.",
                    *(job.folder, number, error.strerror),
                )
        return self._in_queue(job, number)

    def _in_queue(self, job: Job, number: str) -> InQueue:
        log = self.folder / f"{number}_0_log.out"
        return InQueue(job, f"as job {number} of Slurm", str(log), number)

    def ended(self, seconds: float) -> list[InQueue]:
        """Those that have come to their end, or have left the queue without."""
        time.sleep(seconds)
        if time.monotonic() - self.looked < self.poll_seconds:
            return []
        self.looked = time.monotonic()
        try:
            self.queued = queue()
        except InputError:  # for the moment
            return []
        for one in self.running:
            alive = self.queued.get(one.number) in ALIVE
            one.missed = 0 if alive else one.missed + 1
        return [one for one in self.running if one.missed >= GONE or (one.missed and one.job.over)]

    def crash(self, one: InQueue) -> str | None:
        """Whatever took it before it could say so."""
        if one.job.state in ("done", "pruned", "failed", "preempted"):
            return None
        return f"job {one.number} of Slurm is gone ({self.queued.get(one.number, 'unknown')})"

    def reap(self, one: InQueue) -> None:
        one.job.succeeded = one.job.state == "done"
        if one.job.folder is not None:
            (one.job.folder / FILE).unlink(missing_ok=True)

    def stop(self, number: int) -> str:
        """They are Slurm's now."""
        numbers = " ".join(one.number for one in self.running)
        self.running.clear()
        return (
            "The jobs stay in the queue, and the same command watches them again; "
            f"scancel {numbers} ends them."
        )


@contextlib.contextmanager
def _links_optional() -> Iterator[None]:
    """While open, submitit bears a file system without symbolic links: when a job is in the queue,
    it leaves one in the place of the script, for people."""
    move = JobPaths.move_temporary_file

    def bear(self: JobPaths, path: Path, name: str, keep_as_symlink: bool = False) -> None:
        try:
            move(self, path, name, keep_as_symlink)
        except OSError:
            if not keep_as_symlink or Path(path).exists():
                raise

    JobPaths.move_temporary_file = bear
    try:
        yield
    finally:
        JobPaths.move_temporary_file = move


def devices(job: Job, gpus_per_node: int | None) -> dict[str, int]:
    """Nodes, tasks and GPUs that a job's hardware wants.

    On one node a single task starts the processes of hardware=ddp itself; on several, Slurm starts
    a task for each device.

    Raises:
        InputError: nobody says how many devices there are to be.
    """
    hardware = job.plan.config["hardware"]
    nodes, count = hardware["num_nodes"], hardware["devices"]
    if count == "auto":
        raise InputError("hardware.devices=auto: Slurm has to be told how many; give a number.")
    wanted = {"nodes": nodes, "tasks_per_node": count if nodes > 1 else 1}
    if gpus_per_node is None:
        gpus_per_node = count if hardware["accelerator"] in ("gpu", "cuda") else 0
    return wanted | ({"slurm_gpus_per_node": gpus_per_node} if gpus_per_node else {})


def queue() -> dict[str, str]:
    """Numbers and states of the user's jobs that Slurm remembers.

    Raises:
        InputError: Slurm does not answer.
    """
    command = ["squeue", "--me", "-hrt", "all", "-o", "%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise InputError("hydra/launcher=slurm: there is no Slurm here (squeue).") from None
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise InputError(f"Slurm does not answer ({' '.join(reason.split())[:200]}).") from None
    return dict(line.split(None, 1) for line in done.stdout.splitlines() if " " in line.strip())


def _number_of(job: Job) -> str | None:
    """The number under which a job was put into the queue, if it was."""
    try:
        found = json.loads((job.folder / FILE).read_text())["job"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _root() -> Path:
    """Where the package lies: the job finds it from any folder."""
    return Path(ddpm.__file__).parent.parent
