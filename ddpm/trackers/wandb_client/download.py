"""Download of a checkpoint from a W&B artifact to its own folder. Needs a key and the network."""

import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ddpm.errors import InputError, one_line, shown
from ddpm.runner.safe_io import file_locks, listing
from ddpm.runner.safe_io.atomic import free_bytes, rename_folder
from ddpm.trackers.wandb_client import session

_FILE = re.compile(r"[A-Za-z0-9][\w.-]{0,127}\.(pt|safetensors)")
_DIGEST = re.compile(r"[0-9a-f]{16,64}")
ANSWER_SECONDS = 20


class Fetched(NamedTuple):
    """A downloaded file and the name of its artifact, `entity/project/name:v3`."""

    file: Path
    name: str
    digest: str


def fetch(name: str, cache: Path) -> Fetched:
    """The checkpoint of `entity/project/artifact:alias`, downloaded unless it is in the cache.

    Raises:
        InputError: not logged in, the server does not answer, or the artifact does not exist.
    """
    artifact = _ask(name)
    full = f"{artifact.qualified_name.rpartition(':')[0]}:{artifact.version}"  # aliases can move
    digest = str(artifact.digest)
    if artifact.type != "model":
        raise InputError(f"it is of type {shown(artifact.type)}, not model.")
    if not _DIGEST.fullmatch(digest):
        raise InputError(f"its digest is {shown(digest)}.")
    folder = cache / digest
    if cached := _checkpoints(folder):
        return Fetched(cached[0], full, digest)
    cache.mkdir(parents=True, exist_ok=True)
    with file_locks.held(cache / f"{digest}.lock", wait=True):  # jobs of a sweep start together
        cached = _checkpoints(folder)
        return Fetched(cached[0] if cached else _download(artifact, folder), full, digest)


def _ask(name: str) -> Any:
    """The artifact of this name on the server."""
    import wandb

    session.session()
    if obstacle := session.not_logged_in():
        raise InputError(f"{obstacle}. Run `wandb login`, or set WANDB_API_KEY.")
    if obstacle := session.out_of_reach():
        raise InputError(f"{obstacle}: an artifact needs the network.")
    try:
        return wandb.Api(timeout=ANSWER_SECONDS).artifact(name)
    except Exception as error:  # of its own, of requests, of pydantic
        raise InputError(f"W&B does not give it: {one_line(error)}.") from None


def _download(artifact: Any, folder: Path) -> Path:
    """Download the only checkpoint of an artifact; other files are ignored."""
    names = [name for name, entry in artifact.manifest.entries.items() if _is_checkpoint(entry)]
    if len(names) != 1:
        raise InputError(f"it holds {len(names)} checkpoints (.pt, .safetensors); one is needed.")
    entry = artifact.get_entry(names[0])
    size, free = entry.size or 0, free_bytes(folder.parent)
    if free is not None and size > free:
        raise InputError(f"it has {size:,} bytes, {folder.parent} has room for {free:,}.")
    print(f"download {artifact.qualified_name} ({size / 1e6:.1f} MB)", flush=True)
    for leftover in listing.paths(folder.parent, f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a killed process
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
    ) as temporary:
        try:
            got = Path(entry.download(root=temporary, skip_cache=True))
        except Exception as error:
            raise InputError(f"cannot be downloaded: {one_line(error)}.") from None
        if got.is_symlink() or got.stat().st_size != size:
            raise InputError("the downloaded file is not of the size that W&B states.")
        return _keep(got, folder)


def _is_checkpoint(entry: Any) -> bool:
    """Whether an entry is a checkpoint stored by W&B; a reference could name any local file."""
    name = PurePosixPath(entry.path).name
    return entry.ref is None and _FILE.fullmatch(name) is not None


def _keep(got: Path, folder: Path) -> Path:
    """Fill a temporary folder with the file, then rename it."""
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
    """Write the run's configuration beside its checkpoint, as in a run folder.

    Raises:
        InputError: the file is not a checkpoint of this program.
    """
    from ddpm.runner.checkpoints import checkpoint
    from ddpm.runner.runs import run_dir  # needs torch: only after a download

    try:
        state = checkpoint.load(file)
    except InputError as error:
        raise InputError(str(error).removeprefix(f"checkpoint={file}: ")) from None
    if file.suffix == ".pt":  # an export holds its configuration
        run_dir.write_config(file.parent, state["hparams"])


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in listing.paths(folder) if _FILE.fullmatch(path.name)]
