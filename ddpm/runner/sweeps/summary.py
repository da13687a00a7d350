"""The table at the end of a sweep: that of job=status, and the sweep's folder."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.errors import shown
from ddpm.runner.runs.state import FINISHED
from ddpm.runner.sweeps import callback
from ddpm.runner.sweeps.compose import Job
from ddpm.runner.sweeps.folder import job_folders

if TYPE_CHECKING:
    from ddpm.runner.report.status import JobStatus


def print_summary(sweep: Path) -> bool:
    """Print the status of this command's jobs; True if all are finished.

    Third-party launchers may run jobs in other processes: the table then shows all jobs in the
    sweep's folder.
    """
    from ddpm.runner.report import status  # imports numpy

    rows = [_status(job, sweep) for job in callback.jobs]
    rows = rows or [status.read(folder) for folder in job_folders(sweep)]
    print(f"\n{status.render(rows)}\nfolder   {sweep}", flush=True)
    if refused := [job for job in callback.jobs if job.refused]:
        jobs = ", ".join(f"{job.number} ({job.text})" for job in refused[:4])
        more = f" and {len(refused) - 4} more" if len(refused) > 4 else ""
        print(
            f"refused  {len(refused)} of {len(callback.jobs)} jobs did not run, as a value is not "
            f"allowed: {jobs}{more}",
            flush=True,
        )
    return all(row.state in FINISHED for row in rows)


def _status(job: Job, sweep: Path) -> "JobStatus":
    """The row of a job. This process may know more than its folder does: an export has none, and
    an error may not have been written."""
    from ddpm.runner.report import status

    row = status.JobStatus(str(job.number), [], job.state)
    if job.folder is not None:
        row = status.read(job.folder)
        if job.folder.parent != sweep:
            row = replace(row, name=str(job.folder))
    error = row.error if job.error is None else shown(job.error, 200)
    return replace(row, overrides=job.overrides, state=job.state, error=error)
