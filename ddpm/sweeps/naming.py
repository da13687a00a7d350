"""What trackers call the jobs of a sweep, so that no two look alike."""

from collections.abc import Sequence
from dataclasses import replace

from ddpm.rules import look_up
from ddpm.sweeps.freeze import Job
from ddpm.wb import limits
from ddpm.wb.settings import PLACE


def name_jobs(jobs: Sequence[Job]) -> None:
    """Shorten names that W&B would refuse to the words that tell a job from the others, and note
    those words where a name is given that several jobs would share.

    A single job may be one of several commands for the same sweep: it counts as one of several.
    """
    given = [look_up(job.plan.config, f"{PLACE}.name") if job.plan else None for job in jobs]
    for job, name in zip(jobs, given, strict=True):
        if job.plan is None:
            continue
        title = title_of(job.text.split(" "))
        alike = name is not None and (len(jobs) == 1 or given.count(name) > 1)
        job.plan = replace(
            job.plan,
            name=job.plan.name if len(job.plan.name) <= limits.NAME else title,
            title=(title or str(job.number)) if alike else "",
        )


def title_of(words: Sequence[str]) -> str:
    """Words of the command line without those for trackers; keys without their groups where all is
    too long otherwise."""
    kept = [word for word in words if not word.lstrip("+").startswith("tracker")]
    title = " ".join(kept)
    if len(title) <= limits.NAME:
        return title
    short = [key.rpartition(".")[2] + "=" + value for key, _, value in map(_split, kept)]
    return limits.shortened(" ".join(short if len(set(short)) == len(kept) else kept))


def _split(word: str) -> tuple[str, str, str]:
    return word.partition("=")
