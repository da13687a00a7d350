"""Jobs in the cluster of slurm_cluster.py: submitted, looked at, driven out, waited for."""

from pathlib import Path

from support.slurm_cluster import say, until


def submit(*words, cwd) -> str:
    """`sbatch` with these words in a folder: the number of the job."""
    return say("sbatch", "--parsable", *map(str, words), cwd=cwd).strip()


def show(job) -> dict[str, str]:
    """What `scontrol show job` says: JobState, Restarts, ExitCode, Reason, ... Unlike `squeue` it
    knows jobs that have ended, too, for five minutes."""
    words = say("scontrol", "--oneliner", "show", "job", str(job)).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def queued() -> dict[str, str]:
    """The jobs that wait, run or end, each element of an array by itself, and their states."""
    return dict(line.split() for line in say("squeue", "-hrt", "all", "-o", "%i %T").splitlines())


def requeue_one(runs: dict[str, Path], lines=3) -> str:
    """Requeue the first of several jobs whose run has logged so many lines and is not done yet, as
    a test of a sweep wants it: its number.

    Args:
        runs: the folder of each job's run; element 3 of array 12 is "12_3".
    """
    found = []

    def in_the_middle():
        states = queued()
        running = [job for job in runs if states.get(job) == "RUNNING"]
        found[:] = [job for job in running if logged(runs[job]) >= lines]
        return found

    until(in_the_middle)
    requeue(found[0])
    return found[0]


def logged(run: Path) -> int:
    """How many lines the log of a run has."""
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def cancel(job, *words) -> None:
    """`scancel`: end a job for good, or with `--signal=USR1` only tell it something."""
    say("scancel", *words, str(job))


def requeue(job) -> None:
    """Stop a job and put it back into the queue, as an administrator or a failing node does."""
    say("scontrol", "requeue", str(job))


def drive_out(job, cwd, seconds=60) -> None:
    """Let jobs of the urgent partition take every CPU until this one has been driven out."""
    before = int(show(job)["Restarts"])
    words = ("--partition=urgent", "--exclusive", "--output=/dev/null")
    urgent = submit(*words, "--wrap=sleep 600", cwd=cwd)
    try:
        until(lambda: int(show(job)["Restarts"]) > before, seconds)
    finally:
        cancel(urgent)


def ended(job, seconds=120) -> dict[str, str]:
    """Wait for the end of a job; what there is to say of it. One that is queued again has not
    ended."""
    states = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
    until(lambda: show(job)["JobState"] in states, seconds)
    return show(job)
