"""Folders of sweeps."""

from ddpm.runner.sweeps import folder


def jobs_of(home, name="study"):
    return {job.name: job for job in folder.job_folders(home / "outputs" / "sweep" / name)}
