"""The client of the Hub, which is an extra, and its errors in one line."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from ddpm.errors import InputError, one_line


def api() -> Any:
    """The client; it talks to HF_ENDPOINT.

    Raises:
        InputError: huggingface_hub is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise InputError("needs the package huggingface_hub: pip install -e '.[hub]'.") from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="hydra-ddpm")


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn errors of the client and the network into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of its own, of its HTTP library, of the system
        kind = type(error).__name__
        known = {
            "RepositoryNotFoundError": "there is no such repository, or it is private: "
            "`hf auth login`, or HF_TOKEN",
            "GatedRepoError": "its owner gives access on request: ask on its page, then "
            "`hf auth login`",
            "RevisionNotFoundError": "it has no such branch, tag or commit",
        }
        raise InputError(f"{known.get(kind, one_line(error))}.") from error
