"""A W&B run is opened: online where that works, else offline; in silence, and at once."""

import logging
import os
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ddpm.errors import InputError, one_line, shown
from ddpm.runner.safe_io.secret_names import is_secret
from ddpm.trackers.wandb_client import limits

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0  # a server that is slower than this to answer counts as out of reach
INIT_SECONDS = 15.0  # and so does one that answers but opens no run in this time
FINISH_SECONDS = 20.0  # upload that may be waited for at the end; the rest stays in the run folder
# Options that a run can be shown without, and the fields of `wandb.Settings` that hold them.
COSMETIC = {
    "tags": "run_tags",
    "notes": "run_notes",
    "name": "run_name",
    "group": "run_group",
    "job_type": "run_job_type",
}
# Variables of the environment for what a run says itself: its configuration has read them.
_OURS = {f"WANDB_{name}" for name in ("PROJECT", "ENTITY", "NAME", "NOTES", "TAGS", "JOB_TYPE")}
_OURS |= {f"WANDB_{field.upper()}" for field in COSMETIC.values()}
_OURS |= {f"WANDB_{name}" for name in ("RUN_ID", "RESUME", "RESUME_FROM", "FORK_FROM", "REINIT")}
_OURS |= {"WANDB_MODE", "WANDB_DIR", "WANDB_ROOT_DIR"}
_OF_SWEEPS = {"WANDB_PROJECT", "WANDB_ENTITY"}  # what W&B's agent says, and wandb insists on


def open_run(wanted: str | None, **options: Any) -> tuple["wandb.Run", str | None]:
    """The run, and what kept it from being online if that was not asked for.

    Args:
        options: what `wandb.init` takes; `commit` is the code's, None where it is not known.

    Raises:
        InputError: it has to be online, and nobody is logged in.
    """
    settings = session(options["id"]).settings
    if wanted is None and settings.mode in ("offline", "dryrun", "disabled"):
        wanted = "disabled" if settings.mode == "disabled" else "offline"  # by `wandb offline`
    if wanted in ("offline", "disabled"):
        return _open(wanted, options), None
    obstacle = not_logged_in()
    if obstacle and wanted == "online":
        raise InputError(_cannot_be_online(obstacle))
    obstacle = obstacle or out_of_reach()
    if not obstacle:
        try:
            return _open("online", options), None
        except Exception as error:
            obstacle = one_line(error)
            _begin_again(options["id"])
    return _open("offline", options), obstacle


def check_login() -> None:
    """See, before a run has a folder, that it can be online as it has to be.

    Raises:
        InputError: nobody is logged in.
    """
    session()
    obstacle = not_logged_in()
    abandon()  # processes may be forked before the run opens
    if obstacle:
        raise InputError(_cannot_be_online(obstacle))


def _cannot_be_online(obstacle: str) -> str:
    return (
        f"W&B cannot be online: {obstacle}. "
        "Run `wandb login`, or choose tracker.wandb.mode=offline."
    )


def _open(mode: str, options: dict[str, Any]) -> "wandb.Run":
    """The run; without its tags, notes and the like where W&B opens it only so, and a word on it.

    Raises:
        Exception: of W&B, which does not open it in any way.
    """
    began = time.monotonic()
    try:
        return _init(mode, **options)
    except Exception as error:
        slow = time.monotonic() - began > INIT_SECONDS / 2  # no refusal
        if slow or not any(options.get(name) for name in COSMETIC):
            raise
        refused, reason = _refused(options), one_line(error)
        _begin_again(options["id"])
    run = _init(mode, **options | {name: _least(name, options[name]) for name in refused})
    logger.warning("W&B refuses %s (%s): the run is tracked without.", " or ".join(refused), reason)
    return run


def _refused(options: dict[str, Any]) -> list[str]:
    """Those of a run's cosmetic options that W&B's client refuses; all, where it refuses none and
    it must have been the server."""
    import wandb

    given = [name for name in COSMETIC if options.get(name)]
    found = []
    for name in given:
        try:
            wandb.Settings(**{COSMETIC[name]: options[name]}).to_proto()
        except Exception:
            found.append(name)
    return found or given


def _least(name: str, value: str) -> str | None:
    """What is left of an option that was refused: plain forms of what runs are found by."""
    return limits.plain(value) if name in ("name", "group") else None


def _init(mode: str, commit: str | None, **options: Any) -> "wandb.Run":
    """`wandb.init`, silent, in a run of its own, and with the argument list left out."""
    import wandb

    if limits.in_sweep():  # the sweep says where its runs go; the id is `session`'s
        options |= {"entity": None, "project": None, "id": None}
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
    with _without_extras():
        return wandb.init(settings=settings, **options)


@contextmanager
def _without_extras() -> Iterator[None]:
    """Let `wandb.init` leave out two things that cost a run more than they give.

    - It hooks itself into later imports, to tell W&B which libraries are in use; such an import
      fails where W&B's own process has died.
    - It imports W&B Launch, which takes a second, for inputs of a job. Whoever has set some has
      imported it already.
    """
    from wandb.sdk.wandb_run import Run

    names = ["_register_telemetry_import_hooks"]
    if "wandb.sdk.launch.inputs.internal" not in sys.modules:
        names.append("_detect_and_apply_job_inputs")
    originals = {name: getattr(Run, name) for name in names if hasattr(Run, name)}
    for name in originals:
        setattr(Run, name, lambda self: None)
    try:
        yield
    finally:
        for name, method in originals.items():
            setattr(Run, name, method)


def session(run_id: str | None = None) -> Any:
    """What the runs of this process share, kept from talking.

    Args:
        run_id: of the next run; under W&B's agent wandb takes no other than that of the session.
    """
    import wandb

    in_sweep = run_id is not None and limits.in_sweep()
    settings = {"silent": True} | ({"run_id": run_id} if in_sweep else {})
    with _own_environment():
        try:
            return wandb.setup(wandb.Settings(**settings))
        except Exception:
            # W&B's own process, as an earlier program left it in the environment; it may be dead.
            if os.environ.pop("WANDB_SERVICE", None) is None:
                raise
            return wandb.setup(wandb.Settings(**settings))


@contextmanager
def _own_environment() -> Iterator[None]:
    """Without the variables that a run has read itself, and those that W&B would refuse: one of
    either kind would cost all tracking. Others, such as WANDB_BASE_URL, are W&B's."""
    hidden = _OURS - (_OF_SWEEPS if limits.in_sweep() else set())
    hidden |= {name for name in os.environ if name not in hidden and _is_refused(name)}
    before = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


_told: set[str] = set()  # variables that were warned about


def _is_refused(name: str) -> bool:
    """Whether W&B refuses what a variable says; told once."""
    import wandb

    if not name.startswith("WANDB_"):
        return False
    try:
        wandb.Settings().update_from_env_vars({name: os.environ[name]})
    except Exception as error:
        if name not in _told:
            value = "" if is_secret(name) else f"={shown(os.environ[name])}"
            logger.warning("%s%s: W&B refuses it, and it is left out: %s", name, value, _why(error))
        _told.add(name)
        return True
    return False


def _why(error: Exception) -> str:
    """A reason that does not repeat the value, as pydantic's own text does."""
    found = error.errors() if hasattr(error, "errors") else []
    return shown(found[0]["msg"] if found else error, 160)


def _begin_again(run_id: str) -> None:
    """After a run that could not be opened: nothing of it may be left."""
    abandon()
    session(run_id)


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
