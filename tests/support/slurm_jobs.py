"""Jobs in the cluster of slurm_cluster.py: submit, inspect, preempt, wait."""

from pathlib import Path

from support.slurm_cluster import output_of, until


def submit(*words, cwd) -> str:
    """`sbatch` with these arguments in a folder; returns the id of the job."""
    return output_of("sbatch", "--parsable", *map(str, words), cwd=cwd).strip()


def show(job) -> dict[str, str]:
    """The fields of `scontrol show job`: JobState, Restarts, ExitCode, Reason, ... Unlike `squeue`,
    it still lists jobs that ended in the last five minutes."""
    fields = output_of("scontrol", "--oneliner", "show", "job", str(job)).split()
    return dict(field.split("=", 1) for field in fields if "=" in field)


def queued() -> dict[str, str]:
    """The states of all jobs, each element of an array by itself."""
    return dict(
        line.split() for line in output_of("squeue", "-hrt", "all", "-o", "%i %T").splitlines()
    )


def requeue_one(runs: dict[str, Path], lines=3) -> str:
    """Requeue the first of several jobs that is running and has logged so many lines; returns its
    id.

    Args:
        runs: the folder of each job's run; element 3 of array 12 is "12_3".
    """
    candidates = []

    def find_candidates():
        states = queued()
        running = [job for job in runs if states.get(job) == "RUNNING"]
        candidates[:] = [job for job in running if logged(runs[job]) >= lines]
        return candidates

    until(find_candidates)
    requeue(candidates[0])
    return candidates[0]


def logged(run: Path) -> int:
    """The number of lines in the log of a run."""
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def cancel(job, *words) -> None:
    """`scancel`: end a job for good, or with `--signal=USR1` only send a signal."""
    output_of("scancel", *words, str(job))


def requeue(job) -> None:
    """Stop a job and requeue it, as an administrator or a failing node does."""
    output_of("scontrol", "requeue", str(job))


def preempt(job, cwd, seconds=60) -> None:
    """Let a job of the urgent partition take every CPU until this one has been preempted."""
    restarts = int(show(job)["Restarts"])
    words = ("--partition=urgent", "--exclusive", "--output=/dev/null")
    urgent = submit(*words, "--wrap=sleep 600", cwd=cwd)
    try:
        until(lambda: int(show(job)["Restarts"]) > restarts, seconds)
    finally:
        cancel(urgent)


def ended(job, seconds=120) -> dict[str, str]:
    """Wait for the end of a job and return its fields; a requeued job has not ended."""
    states = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
    until(lambda: show(job)["JobState"] in states, seconds)
    return show(job)
