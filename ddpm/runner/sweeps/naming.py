"""Unique names of a sweep's jobs for trackers."""

from collections.abc import Sequence
from dataclasses import replace

from ddpm.runner.config.wandb_settings import PLACE
from ddpm.runner.safe_io.tree import get_path
from ddpm.runner.sweeps.compose import Job
from ddpm.trackers.wandb_client import limits


def name_jobs(jobs: Sequence[Job]) -> None:
    """Shorten names that are too long for W&B to the overrides that distinguish a job, and set the
    plan's title to these where several jobs would share a given name.

    A single job may be one of several commands for the same sweep, so it counts as one of several.
    """
    plans = [(job, job.plan) for job in jobs if job.plan is not None]
    names = [get_path(plan.config, f"{PLACE}.name") for _, plan in plans]
    for (job, plan), name in zip(plans, names, strict=True):
        title = limits.title_of(job.title.split(" "))
        shared = name is not None and (len(plans) == 1 or names.count(name) > 1)
        job.plan = replace(
            plan,
            name=plan.name if len(plan.name) <= limits.NAME else title or plan.name,
            title=(title or str(job.number)) if shared else "",
        )
