"""job=watch: a page on this machine that shows runs while they train. Imports no torch."""

import os
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from ddpm.errors import InputError
from ddpm.jobs.report import read_keys, select_runs
from ddpm.runner.config import rules
from ddpm.runner.runs.find import below
from ddpm.runner.sweeps import folder


def watch(cfg: DictConfig, *, host: str, port: int, max_runs: int) -> None:
    """Serve the page until Ctrl-C. conf/job/watch.yaml explains the arguments.

    Raises:
        InputError: the runs do not exist, the address cannot be used, or a package is missing.
    """
    from ddpm.web import server

    server.check_extra("watch")
    rules.check({"job": {"host": host, "port": port, "max_runs": max_runs}}, {})
    token = server.check_address(host)
    find, title = _runs(cfg)
    from ddpm.web.runs import Runs  # imports numpy
    from ddpm.web.watch import application

    found = len(find())
    opened = server.bind(host, port)
    app = application(Runs(find, title, max_runs), token, host)
    os.nice(10)  # training on the same machine comes first
    count = f"{found} run{'' if found == 1 else 's'}"
    server.run(app, opened, host, token, f"{count} of {title}")


def _runs(cfg: DictConfig) -> tuple[Callable[[], list[Path]], str]:
    """A function that finds the runs, also those that begin later, and their title.

    Raises:
        InputError: the command line names none that exist, or keys that this job does not take.
    """
    takes = "sweep=<name>, runs=[<folder>] or output_dir=<folder>"
    takes = f"job=watch only reads runs; it takes {takes}"
    keys = read_keys(cfg, ("sweep", "runs", "output_dir"), takes)
    named = [f"{key}={value}" for key, value in keys.items() if value is not None]
    if len(named) > 1:
        raise InputError(f"job=watch: name one of {' and '.join(named)}.")
    if keys["sweep"] is None and keys["runs"] is None:
        root = Path(keys["output_dir"] or "outputs")
        if keys["output_dir"] is not None and not root.is_dir():
            raise InputError(f"output_dir={root}: no such folder.")
        return lambda: below(root), str(root)
    chosen = select_runs(cfg, "watch")
    if keys["sweep"] is not None:
        return lambda: folder.job_folders(chosen.output_dir), f"sweep {chosen.title}"
    return lambda: chosen.folders, chosen.title
