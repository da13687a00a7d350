"""A process of its own for what may hang, crash or run beside the rest."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Process:
    """A Python process.

    Args:
        arguments: of Python.
        folder: to run in; it is made.
        log: the file for its output.
        environment: beside this process's own.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.command = [sys.executable, *arguments]
        self.folder, self.log = folder, log
        self.environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it has been started."""
        if self.process is None:
            self.folder.mkdir(exist_ok=True)
            with open(self.log, "wb") as log:
                self.process = subprocess.Popen(
                    self.command,
                    cwd=self.folder,
                    env=os.environ | import_paths() | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )

    def end(self) -> int:
        """Start it if need be, and wait for its end: the exit status."""
        self.start()
        assert self.process is not None
        return self.process.wait()

    def kill(self) -> None:
        """As kill -9, with all its children."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def import_paths() -> dict[str, str]:
    """PYTHONPATH as it is understood here, for a process in another folder."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in paths if path)}
