"""What trackers call the jobs of a sweep, so that no two look alike."""

from collections.abc import Sequence
from dataclasses import replace

from ddpm.runner.config.wandb_settings import PLACE
from ddpm.runner.safe_io.tree import get_path
from ddpm.runner.sweeps.compose import Job
from ddpm.trackers.wandb_client import limits


def name_jobs(jobs: Sequence[Job]) -> None:
    """Shorten names that W&B would refuse to the words that tell a job from the others, and note
    those words where a name is given that several jobs would share.

    A single job may be one of several commands for the same sweep: it counts as one of several.
    """
    planned = [job for job in jobs if job.plan is not None]
    given = [get_path(job.plan.config, f"{PLACE}.name") for job in planned]
    for job, name in zip(planned, given, strict=True):
        title = limits.title_of(job.title.split(" "))
        alike = name is not None and (len(planned) == 1 or given.count(name) > 1)
        job.plan = replace(
            job.plan,
            name=job.plan.name if len(job.plan.name) <= limits.NAME else title or job.plan.name,
            title=(title or str(job.number)) if alike else "",
        )
