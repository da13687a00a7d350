"""job=status: a table of the states of runs. Imports no torch."""

from omegaconf import DictConfig

from ddpm.jobs.report import select_runs


def status(cfg: DictConfig) -> None:
    """Print a line for each run: its overrides, step, loss, speed and state.

    Raises:
        InputError: the command line names no runs, or keys that this job does not take.
    """
    folders = select_runs(cfg, "status").folders
    from ddpm.runner.report.status import table  # imports numpy

    print(table(folders))
