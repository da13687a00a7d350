"""What must be on the disk before anybody builds on it."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Put the folder's entries on the disk: without it a power cut can undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
