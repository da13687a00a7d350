"""One checkpoint out of a W&B artifact, into a folder of its own. Needs a key and the network."""

import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ddpm.errors import InputError, shown
from ddpm.runner.safe_io import file_locks, listing
from ddpm.runner.safe_io.atomic import free_bytes, rename_folder
from ddpm.trackers.wandb_client import session

_FILE = re.compile(r"[A-Za-z0-9][\w.-]{0,127}\.(pt|safetensors)")
_DIGEST = re.compile(r"[0-9a-f]{16,64}")
ANSWER_SECONDS = 20


class Found(NamedTuple):
    """The file, and the artifact it is of: `entity/project/name:v3`."""

    file: Path
    name: str
    digest: str


def fetch(name: str, cache: Path) -> Found:
    """The checkpoint of `entity/project/artifact:alias`; a version that is in the cache stays.

    Raises:
        InputError: nobody is logged in, the server does not answer, or there is no such thing.
    """
    artifact = _ask(name)
    full = f"{artifact.qualified_name.rpartition(':')[0]}:{artifact.version}"  # an alias may move
    digest = str(artifact.digest)
    if artifact.type != "model":
        raise InputError(f"it is of type {shown(artifact.type)}, not model.")
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"its digest is {shown(digest)}.")
    folder = cache / digest
    if there := _checkpoints(folder):
        return Found(there[0], full, digest)
    cache.mkdir(parents=True, exist_ok=True)
    with file_locks.held(cache / f"{digest}.lock", wait=True):  # jobs of a sweep come together
        there = _checkpoints(folder)
        return Found(there[0] if there else _download(artifact, folder), full, digest)


def _ask(name: str) -> Any:
    """The artifact that W&B has under this name."""
    import wandb

    session.session()
    if obstacle := session.not_logged_in():
        raise InputError(f"{obstacle}. Run `wandb login`, or set WANDB_API_KEY.")
    if obstacle := session.out_of_reach():
        raise InputError(f"{obstacle}: an artifact needs the network.")
    try:
        return wandb.Api(timeout=ANSWER_SECONDS).artifact(name)
    except Exception as error:  # of its own, of requests, of pydantic
        raise InputError(f"W&B does not give it: {shown(error, 200)}.") from None


def _download(artifact: Any, folder: Path) -> Path:
    """Take the one checkpoint of an artifact, whatever else is in it."""
    names = [name for name, entry in artifact.manifest.entries.items() if _is_checkpoint(entry)]
    if len(names) != 1:
        raise InputError(f"it holds {len(names)} checkpoints (.pt, .safetensors); one is needed.")
    entry = artifact.get_entry(names[0])
    size, free = entry.size or 0, free_bytes(folder.parent)
    if free is not None and size > free:
        raise InputError(f"it has {size:,} bytes, {folder.parent} has room for {free:,}.")
    print(f"download {artifact.qualified_name} ({size / 1e6:.1f} MB)", flush=True)
    for left in listing.paths(folder.parent, f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
    place = {"prefix": f".{folder.name}.", "dir": folder.parent, "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**place) as temporary:
        try:
            got = Path(entry.download(root=temporary, skip_cache=True))
        except Exception as error:
            raise InputError(f"cannot be downloaded: {shown(error, 200)}.") from None
        if got.is_symlink() or got.stat().st_size != size:
            raise InputError("what arrived is not what W&B said it would be.")
        return _keep(got, folder)


def _is_checkpoint(entry: Any) -> bool:
    """Whether an entry is a file that W&B holds; a reference could be any file of this machine."""
    name = PurePosixPath(entry.path).name
    return entry.ref is None and _FILE.fullmatch(name) is not None


def _keep(got: Path, folder: Path) -> Path:
    """Give the file its folder, whole, in one move."""
    whole = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        shutil.move(got, whole / got.name)
        _add_configuration(whole / got.name)
        if not _checkpoints(folder):
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
            rename_folder(whole, folder)
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    return _checkpoints(folder)[0]


def _add_configuration(file: Path) -> None:
    """Write the run's configuration beside its checkpoint, as it stands beside any other.

    Raises:
        InputError: it is no checkpoint of this program.
    """
    from ddpm.runner.checkpoints import checkpoint
    from ddpm.runner.runs import run_dir  # torch, only where something was downloaded

    try:
        state = checkpoint.load(file)
    except InputError as error:
        raise InputError(str(error).removeprefix(f"checkpoint={file}: ")) from None
    if file.suffix == ".pt":  # an export is asked itself
        run_dir.write_config(file.parent, state["hparams"])


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in listing.paths(folder) if _FILE.fullmatch(path.name)]
