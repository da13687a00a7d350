"""Records the side effects of reading a foreign file."""

import contextlib
import sys

# Events that reading a file must not cause.
DEEDS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.kill",
    "subprocess.Popen", "pty.spawn", "socket.connect", "socket.bind", "urllib.Request",
    "http.client.connect", "ftplib.connect", "smtplib.connect", "webbrowser.open",
    "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.unpack_archive", "pickle.find_class",
    "code.__new__", "function.__new__", "ctypes.dlopen", "builtins.breakpoint", "sqlite3.connect",
    "signal.pthread_kill", "ensurepip.bootstrap", "cpython.run_command",
)  # fmt: skip
# Modules that only a hostile name would import.
MODULES = {"antigravity", "pip", "webbrowser", "turtle", "this", "ensurepip", "venv", "dill", "pty"}
_noted: list[tuple[str, str]] = []
_armed = False


def _listen(event, arguments):
    if _armed and (event in DEEDS or event == "import"):
        _noted.append((event, str(arguments[0]) if arguments else ""))


sys.addaudithook(_listen)  # it cannot be taken away again, so it listens only where told to


@contextlib.contextmanager
def watched(*, imports=False):
    """Nothing of the above may happen inside; with `imports`, no module may come in at all."""
    global _armed
    _noted.clear()
    _armed = True
    try:
        yield
    finally:
        _armed = False
    done = [(event, what) for event, what in _noted if event != "import"]
    brought = [what for event, what in _noted if event == "import"]
    assert not done
    assert not {what.partition(".")[0] for what in brought} & MODULES
    assert not (imports and brought)
