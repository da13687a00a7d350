"""Upload an export to a repository of the Hub."""

from pathlib import Path
from typing import Any

from ddpm.errors import InputError
from ddpm.runner.hub import reference
from ddpm.runner.hub.client import answering, api


def check(target: str) -> Any:
    """The client for uploads, checked before anything is exported.

    Raises:
        InputError: the name is invalid, the package is missing, or no user is logged in.
    """
    _, revision = reference.repository(target, "job.push_to")
    if revision is not None:
        raise InputError(f"job.push_to={target}: names a revision; leave @{revision} out.")
    try:
        hub = api()
    except InputError as error:
        raise InputError(f"job.push_to={target}: {error}") from None
    from huggingface_hub import get_token

    if get_token() is None:
        raise InputError(
            f"job.push_to={target}: not logged in. Run `hf auth login`, or set HF_TOKEN."
        )
    return hub


def push(hub: Any, target: str, folder: Path, message: str) -> str:
    """Upload all files of a folder in one commit; return the address of the repository, which is
    created, private, if it does not exist.

    Raises:
        InputError: the server refuses it, or does not answer; the folder stays as it is.
    """
    name, _ = reference.repository(target, "job.push_to")
    try:
        with answering():
            url = hub.create_repo(name, private=True, exist_ok=True)
            hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except InputError as error:
        raise InputError(f"job.push_to={target}: {error} The export is in {folder}.") from None
    return str(url)
