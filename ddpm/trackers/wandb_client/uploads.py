"""Uploads a run's files as versions of a W&B artifact, in a thread beside the training."""

import contextlib
import json
import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import one_line
from ddpm.runner.checkpoints.summary import BEST
from ddpm.runner.runs import metrics_log
from ddpm.runner.safe_io import atomic
from ddpm.trackers.wandb_client.limits import artifact_name

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

SECONDS = 600.0  # that the end of a run waits for uploads


class Uploads:
    """A thread that uploads files one after the other. The first failure is reported, none raises.

    Args:
        run: online or offline; offline, the files wait in the run folder for `wandb sync`.
        keeps: which checkpoints become versions: none, last, all.
    """

    def __init__(self, run: "wandb.Run", run_dir: Path, run_id: str, keeps: str) -> None:
        self._run, self._dir, self._id, self._keeps = run, Path(run_dir), run_id, keeps
        self._done = _Done(self._dir / "wandb" / "artifacts.json")
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._left = 0
        self._idle = threading.Condition()
        self._thread: threading.Thread | None = None
        self._warned = False

    def uses(self, artifact: str) -> None:
        """Record that the run uses an artifact, for W&B's lineage graph. Online only."""
        if not self._run.offline and not self._run.disabled:
            self._later(lambda: self._run.use_artifact(artifact))

    def add(self, kind: str, step: int, files: Sequence[Path], *, final: bool) -> None:
        """Upload a version of the model or samples; hard-linked now, since files may be deleted."""
        wanted = final if self._keeps == "last" else self._keeps == "all"
        if kind == "report":  # each report is a new version
            step = self._done.count(kind)
        if not wanted or not files or self._run.disabled or self._done.has(kind, step):
            return
        with self._reporting():
            folder = self._dir / "wandb" / "artifacts" / f"{kind}-step-{step:07d}"
            best = self._best(files[0]) if kind == "model" else False
            name = f"step-{step:07d}.pt"
            held = [_link(f, folder / (name if f.name == BEST else f.name)) for f in files]
            losses = metrics_log.values(self._dir, until=step)
            loss = metrics_log.final(losses) if kind == "model" else None
            self._later(lambda: self._upload(kind, step, held, loss, best))

    def finish(self, seconds: float) -> None:
        """Wait until all uploads are done, at most so long."""
        with self._idle:
            self._idle.wait_for(lambda: self._left == 0, seconds)

    def _best(self, file: Path) -> bool | None:
        """Whether a checkpoint is the one that the run keeps as its best; None: it keeps none."""
        kept = self._dir / "checkpoints" / BEST
        return kept.samefile(file) if kept.is_file() else None

    def _upload(
        self, kind: str, step: int, files: list[Path], loss: float | None, best: bool | None
    ) -> None:
        import wandb

        about: dict[str, Any] = {"step": step} | ({} if loss is None else {"loss": loss})
        artifact = wandb.Artifact(artifact_name(f"{kind}-{self._id}"), kind, metadata=about)
        for file in files:  # without a copy in W&B's cache: a checkpoint can be large
            artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
        if best is None:
            best = loss is not None and self._done.is_best(loss)
        aliases = ["latest", f"step-{step}", *(["best"] if best else [])]
        logged = self._run.log_artifact(artifact, aliases=aliases)
        if not self._run.offline:
            logged.wait(timeout=int(SECONDS))
            shutil.rmtree(files[0].parent, ignore_errors=True)
        self._done.note(kind, step, loss)

    def _later(self, call: Callable[[], Any]) -> None:
        with self._idle:
            self._left += 1
        self._todo.put(call)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="uploads")
            self._thread.start()

    def _work(self) -> None:
        while True:
            call = self._todo.get()
            with self._reporting():
                call()
            with self._idle:
                self._left -= 1
                self._idle.notify_all()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Report the first error; it fails the upload only."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                logger.warning("An upload to W&B failed, the run goes on: %s", one_line(error))
            self._warned = True


class _Done:
    """The uploads of all starts of the run, in `wandb/artifacts.json`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError):
            found = []
        self._entries = [entry for entry in found if isinstance(entry, dict)]

    def has(self, kind: str, step: int) -> bool:
        return any((e.get("kind"), e.get("step")) == (kind, step) for e in self._entries)

    def count(self, kind: str) -> int:
        return sum(e.get("kind") == kind for e in self._entries)

    def is_best(self, loss: float) -> bool:
        """Whether no earlier version has a lower loss."""
        losses = [e["loss"] for e in self._entries if metrics_log.is_number(e.get("loss"))]
        return all(loss < other for other in losses)

    def note(self, kind: str, step: int, loss: float | None) -> None:
        self._entries.append({"kind": kind, "step": step, "loss": loss})
        atomic.write(self._file, json.dumps(self._entries))


def waiting_time(state: str) -> float:
    """Seconds that the end of a run waits for uploads; a preempted run has little time."""
    return SECONDS if state == "done" else 5.0


def _link(file: Path, held: Path) -> Path:
    """A hard link to a file, or a copy if the file system has no links."""
    held.parent.mkdir(parents=True, exist_ok=True)
    held.unlink(missing_ok=True)
    try:
        os.link(file, held)
    except OSError:
        shutil.copyfile(file, held)
    return held
