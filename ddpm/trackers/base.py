"""What a tracker is, and how several are driven as one."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from ddpm.errors import InputError, one_line
from ddpm.runner.safe_io import listing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """Who a run is. A resumed run has the `run_id` it began with.

    Args:
        title: what tells a job from the others of its sweep, for names that they would share.
    """

    run_id: str
    name: str
    group: str | None  # the sweep it belongs to
    tags: list[str]
    job_type: str  # train | sample
    title: str = ""


class Tracker(Protocol):
    """A place where numbers and pictures go."""

    where: str | None  # one line: a link, or the command that shows or uploads the run

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep `{"train/loss": 0.1, ...}` at an optimizer step."""

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """Keep a picture: uint8 (C, H, W), C of 1 or 3."""

    def log_files(self, kind: str, step: int, files: list[Path], *, final: bool) -> None:
        """Keep files of a step elsewhere, too: of kind `model` or `samples`; `final`: the last."""

    def close(self, state: str) -> None:
        """The run ends as `done`, `failed` or `preempted`."""


class Trackers:
    """Several trackers as one. None of them can stop the training: one that raises is switched off.

    As a context manager it closes them however the block ends, unless `close` was called before.
    """

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)
        self._live = list(self._trackers)

    @property
    def places(self) -> list[str]:
        """Where each tracker's record is to be seen."""
        return [tracker.where for tracker in self._trackers if tracker.where]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Give the numbers of a step to every tracker."""
        self._each(lambda tracker: tracker.log(step, metrics))

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """Give a picture, uint8 (C, H, W), to every tracker."""
        self._each(lambda tracker: tracker.log_image(step, name, grid))

    def log_files(self, kind: str, step: int, files: list[Path], *, final: bool) -> None:
        """Offer files of a step, which are on the disk, to every tracker."""
        self._each(lambda tracker: tracker.log_files(kind, step, files, final=final))

    def close(self, state: str) -> None:
        """End the run for every tracker, the switched off ones too. Only the first call counts."""
        dead = [tracker for tracker in self._trackers if tracker not in self._live]
        self._each(lambda tracker: tracker.close(state))
        for tracker in dead:
            with suppress(Exception):  # was warned about when it failed
                tracker.close(state)
        self._trackers, self._live = [], []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._live):
            try:
                call(tracker)
            except Exception as error:
                self._live.remove(tracker)
                logger.warning("%s", _switched_off(type(tracker).__name__, error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close("done")
        elif issubclass(kind, KeyboardInterrupt | SystemExit):
            self.close("preempted")
        else:
            self.close("failed")


def grid_file(run_dir: Path, name: str, step: int) -> Path:
    """Where the local tracker of a training run keeps a picture."""
    return run_dir / name / f"step-{step:06d}.png"


def grid_files(run_dir: Path, name: str) -> dict[int, Path]:
    """The pictures that are there, by their steps."""
    files = listing.paths(run_dir / name, "step-*.png")
    found = {path: path.stem.removeprefix("step-") for path in files}
    return {int(step): path for path, step in found.items() if step.isdecimal()}


def open_trackers(
    partials: Mapping[str, Callable[..., Tracker]],
    *,
    run_dir: Path,
    run: RunInfo,
    hparams: dict[str, Any],
    start_step: int,
) -> Trackers:
    """The local files, and after them those trackers of `partials` that could be opened.

    Raises:
        InputError: a knob of theirs has a value that the user must change.
    """
    from ddpm.trackers.local import Local  # which imports this file

    others: list[Tracker] = []
    for name, partial in partials.items():
        try:
            others.append(partial(run_dir=run_dir, run=run, hparams=hparams, start_step=start_step))
        except InputError:
            Trackers(others).close("failed")
            raise
        except Exception as error:
            logger.warning("%s", _switched_off(name, error))
    return Trackers([Local(run_dir=run_dir, run=run, start_step=start_step), *others])


def _switched_off(name: str, error: Exception) -> str:
    """One line about a tracker that raised."""
    return f"The tracker {name} is switched off, the run goes on: {one_line(error)}"
