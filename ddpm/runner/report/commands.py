"""The commands that do a run again, and that sample from it, to be pasted into a shell."""

import os
import re
from pathlib import Path

from ddpm.runner.report import changes, config_diff
from ddpm.runner.report.run_record import RunRecord
from ddpm.runner.roles import Role, role_of
from ddpm.runner.safe_io import listing
from ddpm.runner.terminal import shell


def again(run: RunRecord) -> str | None:
    """`python run.py ...`, as it was typed, with the values that a run had in the end where it went
    on with others; None where nobody knows.

    Words for Hydra itself are left out: a stranger's file must not load code by what one pastes.
    """
    if not run.config:
        return None
    words = [word for word in changes.words(run) if _is_setting(word)]
    return shell.command(*map(shell.bash_word, words))


def _is_setting(word: str) -> bool:
    key = config_diff.key_of(word)
    root = re.split(r"[.@/]", key)[0]
    return bool(key) and not word.startswith("-") and role_of(root) is not Role.START


def sample(run: RunRecord) -> str | None:
    """The command that draws images from a trained run's newest checkpoint, if it has one."""
    try:
        saved = listing.paths(run.folder / "checkpoints", "*.pt")
    except listing.Unreachable:  # is one of the run's problems
        return None
    if run.job != "train" or not saved:
        return None
    return shell.command("job=sample", shell.word("checkpoint", place(run.folder)))


def place(folder: Path) -> Path:
    """The folder as one types it here: relative where it lies below."""
    path, here = Path(os.path.abspath(folder)), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
