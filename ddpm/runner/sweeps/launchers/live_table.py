"""The terminal while jobs run in parallel: a table that is redrawn, or plain lines."""

import shutil
import sys
import time
from pathlib import Path
from typing import Self

from ddpm.runner.sweeps.compose import Job

DRAW_SECONDS = 2.0


class LiveTable:
    """In a terminal, the status table below the printed lines; elsewhere, the lines alone. The jobs
    write their output to their logs."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.is_terminal = sys.stdout.isatty()
        self.lines_drawn = 0
        self.last_draw = -float("inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def add(self, job: Job) -> None:
        """Add a job to the table."""
        if job.folder is not None:
            self.folders.append(job.folder)

    def print_line(self, line: str) -> None:
        """Print a line above the table."""
        self._erase()
        print(line, flush=True)
        self.last_draw = -float("inf")

    def draw(self) -> None:
        """Redraw the table, every few seconds."""
        now = time.monotonic()
        if not self.is_terminal or now - self.last_draw < DRAW_SECONDS:
            return
        from ddpm.runner.report.status import table

        self.last_draw = now
        text = _cut_to_screen(table(self.folders))
        self._erase()
        print(text, flush=True)
        self.lines_drawn = text.count("\n") + 1

    def _erase(self) -> None:
        if self.lines_drawn:
            print(f"\x1b[{self.lines_drawn}A\x1b[J", end="", flush=True)
            self.lines_drawn = 0


def _cut_to_screen(table: str) -> str:
    """The lines that fit on the screen; the last one is the summary."""
    rows, room = table.splitlines(), shutil.get_terminal_size().lines - 2
    if len(rows) <= room:
        return table
    return "\n".join([*rows[: room - 2], f"... and {len(rows) - room + 1} more", rows[-1]])
