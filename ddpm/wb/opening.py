"""A W&B run is opened: online where that works, else offline; in silence, and at once."""

import os
import ssl
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ddpm.errors import InputError, nearest

if TYPE_CHECKING:
    import wandb

MODES = ("online", "offline", "disabled")
ANSWER_SECONDS = 2.0  # a server that is slower than this to answer counts as out of reach
INIT_SECONDS = 15.0  # and so does one that answers but opens no run in this time
FINISH_SECONDS = 20.0  # upload that may be waited for at the end; the rest stays in the run folder


def wanted_mode(mode: str | None) -> str | None:
    """What the configuration or else the environment asks for; None if neither does.

    Raises:
        InputError: that is no mode.
    """
    key = "tracker.wandb.mode"
    if mode is None:
        key, mode = "WANDB_MODE", os.environ.get("WANDB_MODE") or None
    if mode not in (None, *MODES):
        allowed = ", ".join(MODES)
        raise InputError(f"{key}={mode}: must be one of {allowed}.{nearest(str(mode), MODES)}")
    return mode


def open_run(wanted: str | None, **options: Any) -> tuple["wandb.Run", str | None]:
    """The run, and what kept it from being online if that was not asked for.

    Args:
        options: what `wandb.init` takes; `commit` is the code's, None where it is not known.

    Raises:
        InputError: it has to be online, and nobody is logged in.
    """
    settings = session().settings
    if wanted is None and settings.mode != "online":  # after the command `wandb offline`
        wanted = settings.mode
    if wanted in ("offline", "disabled"):
        return _init(wanted, **options), None
    obstacle = not_logged_in()
    if obstacle and wanted == "online":
        raise InputError(
            f"W&B cannot be online: {obstacle}. "
            "Run `wandb login`, or choose tracker.wandb.mode=offline."
        )
    obstacle = obstacle or out_of_reach()
    if not obstacle:
        try:
            return _init("online", **options), None
        except Exception as error:
            obstacle = " ".join(str(error).split())[:200]
            abandon()
            session()
    return _init("offline", **options), obstacle


def _init(mode: str, commit: str | None, **options: Any) -> "wandb.Run":
    """`wandb.init`, silent, in a run of its own, and with the argument list left out."""
    import wandb

    if "WANDB_SWEEP_ID" in os.environ:  # the sweep says where its runs go
        options |= {"entity": None, "project": None}
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
        x_disable_meta=True,  # the command line
        git_commit=commit,
        disable_git=True,  # it would ask in the working directory, and for the address of a remote
        x_transaction_log_flush_interval=2,  # seconds, which a kill can take
    )
    return wandb.init(settings=settings, **options)


def session() -> Any:
    """What the runs of this process share, kept from talking."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True))


def abandon() -> None:
    """Stop W&B's own process, which may be dead or hold the run's id; the next run starts anew."""
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def not_logged_in() -> str | None:
    """Why there is no key to log in with. Looks in the environment and the files, asks nobody."""
    import wandb

    try:
        return None if wandb.login(prompt=False, verify=False) else "not logged in"
    except wandb.Error as error:  # a malformed key
        return str(error)


def out_of_reach() -> str | None:
    """Why W&B's server cannot be talked to, as far as a knock at its door tells."""
    url = session().settings.base_url
    return None if _answers(url) else f"{url} does not answer"


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
