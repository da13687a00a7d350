"""Several trackers driven as one."""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ddpm.errors import InputError, one_line
from ddpm.trackers.base import RunInfo, Tracker
from ddpm.trackers.local import Local

logger = logging.getLogger(__name__)


class Trackers:
    """Several trackers as one. A tracker that raises is switched off and never stops the training.

    As a context manager it closes them however the block ends, unless `close` was called before.
    """

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)
        self._live = list(self._trackers)

    @property
    def places(self) -> list[str]:
        """For each tracker with one: the link or command that shows its record."""
        return [tracker.where for tracker in self._trackers if tracker.where]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """See `Tracker.log`."""
        self._each(lambda tracker: tracker.log(step, metrics))

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """See `Tracker.log_image`."""
        self._each(lambda tracker: tracker.log_image(step, name, grid))

    def log_files(self, kind: str, step: int, files: list[Path], *, final: bool) -> None:
        """See `Tracker.log_files`; the files are complete on disk."""
        self._each(lambda tracker: tracker.log_files(kind, step, files, final=final))

    def close(self, state: str) -> None:
        """Close every tracker, including those switched off. Only the first call counts."""
        switched_off = [tracker for tracker in self._trackers if tracker not in self._live]
        self._each(lambda tracker: tracker.close(state))
        for tracker in switched_off:
            with suppress(Exception):  # its first failure was reported
                tracker.close(state)
        self._trackers, self._live = [], []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._live):
            try:
                call(tracker)
            except Exception as error:
                self._live.remove(tracker)
                _warn(type(tracker).__name__, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close("done")
        else:
            preempted = issubclass(kind, KeyboardInterrupt | SystemExit)
            self.close("preempted" if preempted else "failed")


def check_installed(partials: Mapping[str, Any]) -> None:
    """Check that the packages of trackers are there; those of extras are named `package`.

    Args:
        partials: functools.partial of the trackers' classes, by name.

    Raises:
        InputError: one is missing; names the command that installs it.
    """
    for name, partial in partials.items():
        package = getattr(getattr(partial, "func", None), "package", None)
        if package is not None and importlib.util.find_spec(package) is None:
            raise InputError(f"tracker={name}: needs {package}: pip install -e '.[{package}]'.")


def open_trackers(
    partials: Mapping[str, Callable[..., Tracker]],
    *,
    run_dir: Path,
    run: RunInfo,
    hparams: dict[str, Any],
    start_step: int,
) -> Trackers:
    """The local tracker, followed by those of `partials` that could be opened.

    Raises:
        InputError: a parameter of a tracker has a value that the user must change, or its package
            is missing.
    """
    check_installed(partials)
    others: list[Tracker] = []
    for name, partial in partials.items():
        try:
            others.append(partial(run_dir=run_dir, run=run, hparams=hparams, start_step=start_step))
        except InputError:
            Trackers(others).close("failed")
            raise
        except Exception as error:
            _warn(name, error)
    return Trackers([Local(run_dir=run_dir, run=run, start_step=start_step), *others])


def _warn(name: str, error: Exception) -> None:
    logger.warning("The tracker %s is switched off, the run goes on: %s", name, one_line(error))
