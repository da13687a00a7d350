"""What a person sees while jobs run side by side: a table that is drawn anew, or lines."""

import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ddpm.runner.sweeps.compose import Job

DRAW_SECONDS = 2.0


class Overview:
    """In a terminal a table of all jobs below the lines that were said; elsewhere the lines alone.

    Their own output is in their logs.
    """

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.terminal = sys.stdout.isatty()
        self.lines = 0  # of the table that is on the screen
        self.drawn = -float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._wipe()

    def add(self, job: Job) -> None:
        """The table is to show this job, too."""
        if job.folder is not None:
            self.folders.append(job.folder)

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._wipe()
        print(line, flush=True)
        self.drawn = -float("inf")

    def draw(self) -> None:
        """Show how all jobs stand, if some time has passed."""
        now = time.monotonic()
        if not self.terminal or now - self.drawn < DRAW_SECONDS:
            return
        from ddpm.runner.report.status import table

        self.drawn = now
        text = _fitting(table(self.folders))
        self._wipe()
        print(text, flush=True)
        self.lines = text.count("\n") + 1

    def _wipe(self) -> None:
        """Take the table off the screen."""
        if self.lines:
            print(f"\x1b[{self.lines}A\x1b[J", end="", flush=True)
            self.lines = 0


def _fitting(table: str) -> str:
    """As many lines as the screen has room for, the last of them with the sums."""
    rows, room = table.splitlines(), shutil.get_terminal_size().lines - 2
    if len(rows) <= room:
        return table
    return "\n".join([*rows[: room - 2], f"... and {len(rows) - room + 1} more", rows[-1]])
