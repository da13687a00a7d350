"""Commands that repeat a run or sample from it, to be pasted into a shell."""

import re

from ddpm.runner.report import changes
from ddpm.runner.report.run_record import RunRecord
from ddpm.runner.roles import Role, role_of
from ddpm.runner.safe_io import listing
from ddpm.runner.safe_io.tree import key_of
from ddpm.runner.terminal import shell


def again(run: RunRecord) -> str | None:
    """`python run.py ...` as typed, with the final values of changed settings; None if unknown.

    The run's options for Hydra itself are left out: pasting a command from an untrusted run must
    not load code.
    """
    if not run.config:
        return None
    words = [word for word in changes.final_overrides(run) if _is_setting(word)]
    return shell.command(*map(shell.bash_word, words))


def _is_setting(word: str) -> bool:
    key = key_of(word)
    root = re.split(r"[.@/]", key)[0]
    return bool(key) and not word.startswith("-") and role_of(root) is not Role.START


def sample(run: RunRecord) -> str | None:
    """The command that samples from a training run's newest checkpoint, if it has one."""
    try:
        saved = listing.paths(run.folder / "checkpoints", "*.pt")
    except listing.Unreachable:  # listed among the run's problems
        return None
    if run.job != "train" or not saved:
        return None
    return shell.command("job=sample", shell.word("checkpoint", shell.relative(run.folder)))
