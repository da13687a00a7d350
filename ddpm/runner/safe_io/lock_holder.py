"""The process that holds a lock: its description in a file, and whether it has ended."""

import functools
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from ddpm.errors import shown

UNKNOWN = "another process"
MAX_TEXT = 2000  # bytes of a description


class Taken(Exception):
    """Another process holds the lock.

    Args:
        holder: description of that process: "process 4711 on node3".
        remedy: advice for the case that it has ended; empty if it is known to run.
    """

    def __init__(self, holder: str, remedy: str = "") -> None:
        super().__init__(holder)
        self.holder, self.remedy = holder, remedy


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, described so that others can tell whether it has ended.

    Args:
        kind: kind of its lock.
        machine: id of the machine, kept over restarts.
        boot: id of the boot.
        namespace: namespace of process ids; containers have their own.
        started: start time of the process in kernel ticks, since process ids are reused.
    """

    kind: str
    pid: int
    host: str
    machine: str
    boot: str
    namespace: str
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {shown(self.host)}"

    def has_ended(self) -> bool | None:
        """Whether the process has ended; None if that cannot be determined from this process."""
        own = this_process(self.kind)
        if (self.boot, self.namespace) == (own.boot, own.namespace):
            return not _is_running(self.pid, self.started)
        same_machine = self.machine and (self.host, self.machine) == (own.host, own.machine)
        return True if same_machine and self.boot != own.boot else None


def this_process(kind: str) -> Holder:
    """The description of this process."""
    host = socket.gethostname()
    boot = _text("/proc/sys/kernel/random/boot_id") or f"host {host}"
    return Holder(
        kind=kind,
        pid=os.getpid(),
        host=host,
        machine=_text("/etc/machine-id"),
        boot=boot,
        namespace=_pid_namespace(),
        started=_state_of(os.getpid())[1],
    )


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


@functools.cache
def _text(path: str) -> str:
    """The content of a small system file; empty if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""


def _is_running(pid: int, started: str) -> bool:
    """Whether a process with this id and start time runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it belongs to another user
    state, start = _state_of(pid)
    return state not in ("Z", "X") and (not start or not started or start == started)


def _state_of(pid: int) -> tuple[str, str]:
    """State (R, S, Z, ...) and start time of a process; empty if the system hides them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, ValueError, IndexError):
        return "", ""


def respect(holder: Holder, file: Path) -> None:
    """Raise Taken unless the holder's process has ended; `file` describes it.

    Raises:
        Taken: it has not, or that cannot be determined.
    """
    ended = holder.has_ended()
    if not ended:
        raise Taken(str(holder), remedy(file) if ended is None else "")


def remedy(file: Path) -> str:
    return f"If that process has ended, remove {file} and try again."


def description(kind: str) -> bytes:
    holder = this_process(kind)
    return f"{holder}\n{json.dumps(asdict(holder))}\n".encode()


def read_file(path: Path) -> Holder | None:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return read(file)
    finally:
        os.close(file)


def read(file: int) -> Holder | None:
    """The holder that an open file describes, or None."""
    try:
        fields = json.loads(os.pread(file, MAX_TEXT, 0).decode().partition("\n")[2])
        holder = Holder(**fields)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = [value for name, value in fields.items() if name != "pid"]
    valid = all(isinstance(text, str) for text in texts)
    return holder if valid and type(holder.pid) is int and 0 < holder.pid < 2**31 else None


def name_of(file: int) -> str:
    """The first line of the description in an open file."""
    try:
        text = os.pread(file, 200, 0).decode(errors="replace")
    except OSError:  # SMB forbids reading a locked file
        text = ""
    return shown((text.strip().splitlines() or [UNKNOWN])[0])
