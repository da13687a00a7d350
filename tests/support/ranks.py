"""Processes that stand for ranks."""

import socket

from support.crash import start, wait


def ranks(folder, *arguments, monkeypatch):
    """Two processes as torchrun starts them: their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0}
    children = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items():
                patch.setenv(name, str(value))
            children.append(start(folder, *arguments))
    return [wait(child) for child in children]
