"""Weights & Biases: the only file that imports wandb, and only when a run is opened."""

import os
import shlex
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ddpm.errors import InputError, nearest
from ddpm.trackers.base import RunInfo

if TYPE_CHECKING:
    import wandb

MODES = ("online", "offline", "disabled")
ANSWER_SECONDS = 2.0  # a server that is slower than this to answer counts as out of reach
INIT_SECONDS = 15.0  # and so does one that answers but opens no run in this time
FINISH_SECONDS = 20.0  # upload that may be waited for at the end; the rest stays in the run folder


class Wandb:
    """A W&B run: online where that works, else offline with the command that uploads it later.

    Metrics are drawn against our own `step`, which is logged in every row: W&B's counter only goes
    up, ours goes back to the checkpoint when a run is resumed.
    """

    def __init__(
        self,
        *,
        entity: str | None,
        project: str,
        group: str | None,
        name: str | None,
        tags: list[str],
        notes: str | None,
        mode: str | None,
        run_dir: Path,
        run: RunInfo,
        hparams: dict[str, Any],
        start_step: int,
    ) -> None:
        run_dir = Path(run_dir)
        self._run, obstacle = _open(
            _wanted_mode(mode),
            id=run.run_id,
            dir=str(run_dir.absolute()),
            entity=entity,
            project=project,
            group=group or run.group,
            name=name or run.name,
            tags=list(dict.fromkeys(tag[:64] for tag in [*run.tags, *tags])),  # W&B takes 64
            notes=notes,
            job_type=run.job_type,
            config=hparams,
        )
        self._run.define_metric("*", step_metric="step")
        self.where: str | None = self._find(run_dir, obstacle)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One row, with our step in it."""
        self._run.log({"step": step, **metrics})

    def log_image(self, step: int, name: str, grid: Tensor) -> None:
        """A picture, uint8 (C, H, W). W&B does not rescale: floats would come out black."""
        import wandb

        pixels = grid.permute(1, 2, 0).cpu().numpy()  # (H, W, C)
        self._run.log({"step": step, name: wandb.Image(pixels)})

    def close(self, state: str) -> None:
        """Finish the run; W&B shows it as finished, failed or preempted."""
        try:
            if state == "preempted":
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if state == "done" else 1)
        except Exception:
            _abandon()
            raise

    def _find(self, run_dir: Path, obstacle: str | None) -> str | None:
        """The run's page, or the command that uploads what lies in the run folder."""
        if self._run.disabled:
            return None
        if not self._run.offline:
            return self._run.url
        # A resumed run has several parts; one command takes them all.
        parts = f"{shlex.quote(str(run_dir / 'wandb'))}/offline-run-*"
        because = f" ({obstacle})" if obstacle else ""
        return f"W&B offline{because}; to upload: wandb sync {parts}"


def _wanted_mode(mode: str | None) -> str | None:
    """What the configuration or else the environment asks for; None if neither does."""
    key = "tracker.wandb.mode"
    if mode is None:
        key, mode = "WANDB_MODE", os.environ.get("WANDB_MODE") or None
    if mode not in (None, *MODES):
        allowed = ", ".join(MODES)
        raise InputError(f"{key}={mode}: must be one of {allowed}.{nearest(str(mode), MODES)}")
    return mode


def _open(wanted: str | None, **options: Any) -> tuple["wandb.Run", str | None]:
    """The run, and what kept it from being online if that was not asked for."""
    settings = _session().settings
    if wanted is None and settings.mode != "online":  # after the command `wandb offline`
        wanted = settings.mode
    if wanted in ("offline", "disabled"):
        return _init(wanted, **options), None
    obstacle = _not_logged_in()
    if obstacle and wanted == "online":
        raise InputError(
            f"W&B cannot be online: {obstacle}. "
            "Run `wandb login`, or choose tracker.wandb.mode=offline."
        )
    if not obstacle and not _answers(settings.base_url):
        obstacle = f"{settings.base_url} does not answer"
    if not obstacle:
        try:
            return _init("online", **options), None
        except Exception as error:
            obstacle = " ".join(str(error).split())[:200]
            _abandon()
            _session()
    return _init("offline", **options), obstacle


def _init(mode: str, **options: Any) -> "wandb.Run":
    """`wandb.init`, silent, in a run of its own, and with the argument list left out."""
    import wandb

    settings = wandb.Settings(
        mode=mode,
        silent=True,
        console="off",
        symlink=False,
        reinit="finish_previous",  # the jobs of a sweep share a process, not a run
        resume="allow" if mode == "online" else None,  # offline, W&B knows no resuming
        allow_val_change=True,  # a resumed run may train for more steps than it began with
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        x_disable_meta=True,  # the command line; the git commit is kept
        x_transaction_log_flush_interval=2,  # seconds, which a kill can take
    )
    return wandb.init(settings=settings, **options)


def _session() -> Any:
    """What the runs of this process share, kept from talking."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True))


def _abandon() -> None:
    """Stop W&B's own process, which may be dead or hold the run's id; the next run starts anew."""
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def _not_logged_in() -> str | None:
    """Why there is no key to log in with. Looks in the environment and the files, asks nobody."""
    import wandb

    try:
        return None if wandb.login(prompt=False, verify=False) else "not logged in"
    except wandb.Error as error:  # a malformed key
        return str(error)


def _answers(url: str) -> bool:
    """Whether a server, or the proxy before it, answers in time; a name server may be slow too."""
    answered = threading.Event()

    def knock() -> None:
        try:
            urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except Exception as error:
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return  # a certificate is for W&B to judge
        answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answered.is_set()
