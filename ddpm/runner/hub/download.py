"""Download the files of a network from a repository of the Hub, once for each commit."""

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm.errors import InputError, shown
from ddpm.runner.checkpoints import diffusers_folder, summary
from ddpm.runner.hub.client import answering, api
from ddpm.runner.safe_io import file_locks, listing
from ddpm.runner.safe_io.atomic import free_bytes, rename_folder

_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(name: str, revision: str | None, cache: Path) -> tuple[Path, str]:
    """The folder with the network of `owner/name`, and its commit. Only the files that are needed
    are downloaded; what is in them is checked where they are read.

    Args:
        revision: a branch, tag or commit; None: the default branch. A commit that is in the cache
            needs no network.

    Raises:
        InputError: the package is missing, the server does not answer, or there is no network of a
            kind that this program reads.
    """
    parent = cache / name.replace("/", "--")
    if revision is not None and _COMMIT.fullmatch(revision) and (parent / revision).is_dir():
        return parent / revision, revision
    hub = api()
    with answering():
        info = hub.model_info(name, revision=revision, files_metadata=True)
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise InputError(f"its commit is {shown(commit)}.")
    folder = parent / commit
    if not folder.is_dir():
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        files = needed(list(sizes))
        parent.mkdir(parents=True, exist_ok=True)
        # Jobs of a sweep start together.
        with file_locks.held(parent / f"{commit}.lock", wait=True):
            if not folder.is_dir():
                _download(hub, name, commit, {file: sizes[file] for file in files}, folder)
    return folder, commit


def needed(names: Sequence[str]) -> list[str]:
    """The files that are read of a repository: those of a pipeline, an export or one checkpoint.

    Raises:
        InputError: it holds none of these.
    """
    if summary.PIPELINE in names:
        return diffusers_folder.files(names)
    if summary.EXPORT in names:
        return [summary.EXPORT]
    checkpoints = [name for name in names if re.fullmatch(r"[\w.-]+\.pt", name)]
    if len(checkpoints) == 1:
        return checkpoints
    raise InputError(
        f"it holds no {summary.PIPELINE} (a pipeline of diffusers), no {summary.EXPORT} (an "
        "export) and not one checkpoint (.pt)."
    )


def _download(hub: Any, name: str, commit: str, sizes: dict[str, int], folder: Path) -> None:
    """Fill a temporary folder with the files, then rename it."""
    total, free = sum(sizes.values()), free_bytes(folder.parent)
    if free is not None and total > free:
        raise InputError(f"it has {total:,} bytes, {folder.parent} has room for {free:,}.")
    print(f"download hf:{name} at {commit[:12]} ({total / 1e6:.1f} MB)", flush=True)
    for leftover in listing.paths(folder.parent, f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a killed process
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with answering():
            for file in sizes:
                hub.hf_hub_download(name, file, revision=commit, local_dir=temporary)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # notes of the client
        rename_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
