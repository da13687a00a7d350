"""Opening W&B runs: online if possible, otherwise offline; without output and without delay."""

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

ANSWER_SECONDS = 2.0  # a server that takes longer to answer counts as unreachable
INIT_SECONDS = 15.0  # also one that answers but takes longer to open a run
FINISH_SECONDS = 20.0  # of waiting for uploads at the end; the rest stays in the run folder
# Optional labels of a run, and their fields of `wandb.Settings`.
COSMETIC = {
    "tags": "run_tags",
    "notes": "run_notes",
    "name": "run_name",
    "group": "run_group",
    "job_type": "run_job_type",
}
# Environment variables that the configuration has already read.
_OURS = {f"WANDB_{name}" for name in ("PROJECT", "ENTITY", "NAME", "NOTES", "TAGS", "JOB_TYPE")}
_OURS |= {f"WANDB_{field.upper()}" for field in COSMETIC.values()}
_OURS |= {f"WANDB_{name}" for name in ("RUN_ID", "RESUME", "RESUME_FROM", "FORK_FROM", "REINIT")}
_OURS |= {"WANDB_MODE", "WANDB_DIR", "WANDB_ROOT_DIR"}
_OF_SWEEPS = {"WANDB_PROJECT", "WANDB_ENTITY"}  # set by W&B's agent, and required by wandb


def open_run(wanted: str | None, **options: Any) -> tuple["wandb.Run", str | None]:
    """The run, and the reason why it is offline without being requested to be.

    Args:
        options: arguments of `wandb.init`; and `commit`, the version of the code or None.

    Raises:
        InputError: it must be online, and the user is not logged in.
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
    """Check, before a run has a folder, that it can be online.

    Raises:
        InputError: the user is not logged in.
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
    """The run; if W&B refuses its tags, notes or names, without them and with a warning.

    Raises:
        Exception: W&B refuses the run in any case.
    """
    start = time.monotonic()
    try:
        return _init(mode, **options)
    except Exception as error:
        slow = time.monotonic() - start > INIT_SECONDS / 2  # a timeout, not a refusal
        if slow or not any(options.get(name) for name in COSMETIC):
            raise
        refused, reason = _refused(options), one_line(error)
        _begin_again(options["id"])
    # A plain name or group stands for a refused one; other labels are left out.
    plain = {name: limits.plain(options[name]) for name in refused if name in ("name", "group")}
    reduced = dict.fromkeys(refused) | plain
    run = _init(mode, **options | reduced)
    logger.warning("W&B refuses %s (%s): the run is tracked without.", " or ".join(refused), reason)
    return run


def _refused(options: dict[str, Any]) -> list[str]:
    """The labels that W&B's client refuses; all if it refuses none, since then the server did."""
    import wandb

    labels = [name for name in COSMETIC if options.get(name)]
    refused = []
    for name in labels:
        try:
            wandb.Settings(**{COSMETIC[name]: options[name]}).to_proto()
        except Exception:
            refused.append(name)
    return refused or labels


def _init(mode: str, commit: str | None, **options: Any) -> "wandb.Run":
    """`wandb.init` without output, as a separate run, and without recording the command line."""
    import wandb

    if limits.in_sweep():  # the sweep sets the project; the id is that of `session`
        options |= {"entity": None, "project": None, "id": None}
    settings = wandb.Settings(
        mode=mode,  # type: ignore[arg-type]
        silent=True,
        console="off",
        symlink=False,
        reinit="finish_previous",  # the jobs of a sweep share a process, not a run
        resume="allow" if mode == "online" else None,  # W&B cannot resume offline
        allow_val_change=True,  # a resumed run may have changed settings
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        x_disable_meta=True,  # the command line
        git_commit=commit,
        disable_git=True,  # it would read the working directory and the URL of a remote
        x_transaction_log_flush_interval=2,  # seconds of rows that a kill can lose
    )
    with _without_extras():
        return wandb.init(settings=settings, **options)


@contextmanager
def _without_extras() -> Iterator[None]:
    """Disable two parts of `wandb.init`.

    - Import hooks that report the libraries in use: later imports fail if W&B's process has died.
    - The import of W&B Launch, which takes a second; programs that use it have imported it before.
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
    """The W&B session that the runs of this process share, without output.

    Args:
        run_id: id of the next run; under W&B's agent, wandb uses only the id of the session.
    """
    import wandb

    in_sweep = run_id is not None and limits.in_sweep()
    settings: dict[str, Any] = {"silent": True} | ({"run_id": run_id} if in_sweep else {})
    with _own_environment():
        try:
            return wandb.setup(wandb.Settings(**settings))
        except Exception:
            # The W&B process of an earlier program, named in the environment, may have died.
            if os.environ.pop("WANDB_SERVICE", None) is None:
                raise
            return wandb.setup(wandb.Settings(**settings))


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide the variables that the configuration has read, and those that W&B refuses: either kind
    would make the run fail to open. Others, such as WANDB_BASE_URL, stay."""
    hidden = _OURS - (_OF_SWEEPS if limits.in_sweep() else set())
    hidden |= {name for name in os.environ if name not in hidden and _is_refused(name)}
    saved_env = {name: os.environ.pop(name) for name in hidden if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved_env)


_warned: set[str] = set()  # variables that were reported


def _is_refused(name: str) -> bool:
    """Whether W&B refuses the value of a variable; reported once."""
    import wandb

    if not name.startswith("WANDB_"):
        return False
    try:
        wandb.Settings().update_from_env_vars({name: os.environ[name]})
    except Exception as error:
        if name not in _warned:
            value = "" if is_secret(name) else f"={shown(os.environ[name])}"
            logger.warning("%s%s: W&B refuses it, and it is ignored: %s", name, value, _why(error))
        _warned.add(name)
        return True
    return False


def _why(error: Exception) -> str:
    """The reason without the value, which pydantic's message repeats."""
    details = error.errors() if hasattr(error, "errors") else []
    return shown(details[0]["msg"] if details else error, 160)


def _begin_again(run_id: str) -> None:
    """Discard a run that could not be opened."""
    abandon()
    session(run_id)


def abandon() -> None:
    """Stop W&B's process, which may have died or hold the run's id; the next run starts another."""
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def not_logged_in() -> str | None:
    """The reason why no key is available, or None. Reads environment and files; never prompts."""
    import wandb

    try:
        return None if wandb.login(prompt=False, verify=False) else "not logged in"
    except wandb.Error as error:  # a malformed key
        return str(error)


def out_of_reach() -> str | None:
    """The reason why W&B's server cannot be reached, or None; tries one request."""
    url = session().settings.base_url
    return None if _answers(url) else f"{url} does not answer"


def _answers(url: str) -> bool:
    """Whether a server or proxy answers in time, including the time of name resolution."""
    answered = threading.Event()

    def request() -> None:
        try:
            urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except Exception as error:
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return  # W&B checks certificates itself
        answered.set()

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answered.is_set()
