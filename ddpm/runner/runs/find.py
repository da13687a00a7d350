"""Runs below a folder, found by their files."""

from collections.abc import Sequence
from pathlib import Path

from ddpm.errors import InputError
from ddpm.runner.runs import run_dir
from ddpm.runner.safe_io import listing

_DEEPEST = 6  # folders below outputs/
_MOST_FOLDERS = 20_000


def below(folder: Path, most: int = _MOST_FOLDERS) -> list[Path]:
    """The run folders below a folder, without those inside of runs; links are not followed.

    Args:
        most: folders that are looked at.
    """
    found: list[Path] = []
    todo, seen = [(folder, 0)], 0
    while todo and seen < most:
        path, depth = todo.pop()
        seen += 1
        try:
            entries = listing.entries(path)
        except listing.Unreachable:
            continue
        names = {entry.name for entry in entries}
        if {"config.yaml", "status.json"} & names:
            found.append(path)
        elif depth < _DEEPEST:
            folders = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
            todo += [(path / n, depth + 1) for n in folders if not n.startswith(".")]
    return sorted(found)


def changed(folder: Path, names: Sequence[str] = ("status.json", "config.yaml")) -> float:
    """When the first of these files that there is was written: by default, the state of a run."""
    for name in names:
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def newest_training(folder: Path) -> Path | None:
    """The run of job=train below a folder whose state was written last, of those with a
    checkpoint; for messages, so the search is short and ignores what cannot be read."""
    for path in sorted(below(folder, most=2000), key=changed, reverse=True):
        try:
            trained = run_dir.read_config(path)["choices"].get("job") == "train"
            if trained and listing.paths(path / "checkpoints", "step-*.pt"):
                return path
        except InputError:
            continue
    return None
