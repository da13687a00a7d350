"""Serve a page until Ctrl-C: its address, its files, and answers to mistakes of the user."""

import errno
import importlib.util
import ipaddress
import json
import logging
import os
import secrets
import select
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm.errors import InputError

HOST = "127.0.0.1"
TOKEN = "DDPM_WEB_TOKEN"  # a variable: other users can read the words of a command
MIN_TOKEN = 16  # characters
_STATIC = Path(__file__).parent / "static"
_REPORT = Path(__file__).parents[1] / "runner" / "report" / "page.css"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def check_extra(job: str) -> None:
    """Check that the packages of the extra are installed.

    Raises:
        InputError: they are not; names the command that installs them.
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"job={job}: needs {' and '.join(missing)}: pip install -e '.[web]'")


def check_address(host: str) -> str:
    """Check where a page shall be served; the token that requests need.

    Raises:
        InputError: an address that others can reach without a token of the user's, or a short one.
    """
    token = os.environ.get(TOKEN, "")
    if token and (len(token) < MIN_TOKEN or not token.isascii() or not token.isalnum()):
        raise InputError(
            f"{TOKEN}: must have {MIN_TOKEN} or more characters, letters and digits only, like "
            "$(openssl rand -hex 16)."
        )
    if not token and not is_loopback(host):
        raise InputError(
            f"job.host={host}: others could reach the page. Set a token for it:\n"
            f"{TOKEN}=$(openssl rand -hex 16) python run.py ...\n"
            "Or leave job.host out, and forward the port by ssh -L."
        )
    return token or secrets.token_urlsafe(18)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: the port is in use, or the host is not of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(f"job.host={host}: no such host.") from None
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
        opened.listen(64)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            free = _next_free(family, address)
            raise InputError(
                f"job.port={port}: is in use, perhaps by another page; job.port={free} is free."
            ) from None
        where = f"job.host={host} job.port={port}"
        raise InputError(f"{where}: cannot be used ({error.strerror}).") from None
    return opened


def _next_free(family: int, address: Any) -> int:
    """The next port after that of an address which nothing listens on; 0 if the next 20 are in use,
    which stands for any."""
    name, port, *more = address
    for other in range(port + 1, min(port + 21, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((name, other, *more))
            except OSError:
                continue
            return other
    return 0


def files(page: str) -> dict[str, tuple[bytes, str]]:
    """The files of a page by their path in its address, with their types: read once, so that no
    request reads a file that it names."""
    found = {"/report.css": _REPORT, "/common.css": _STATIC / "common.css"}
    found["/common.js"] = _STATIC / "common.js"
    found |= {f"/{page}.{kind}": _STATIC / f"{page}.{kind}" for kind in ("css", "js")}
    found["/"] = _STATIC / f"{page}.html"
    return {path: (file.read_bytes(), _TYPES[file.suffix]) for path, file in found.items()}


def application(page: str, routes: Sequence[Any], token: str, host: str = HOST) -> Any:
    """The ASGI application of a page: its files, its other routes, and the guard around them."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from ddpm.web.guard import Guard

    contents = files(page)

    def file(request: Request) -> Response:
        content, kind = contents[request.url.path]
        return Response(content, media_type=kind)

    def mistake(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    app = Starlette(
        routes=[*(Route(path, file) for path in contents), *routes],
        exception_handlers={InputError: mistake},
    )
    names = {host, socket.gethostname(), socket.getfqdn()} if not is_loopback(host) else set()
    return Guard(app, token, names, any_address=host in ("0.0.0.0", "::"))


async def body_of(request: Any) -> dict[str, Any]:
    """The JSON object that a request holds.

    Raises:
        InputError: it holds none.
    """
    from ddpm.web.guard import MAX_BODY

    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            raise InputError("the request is too long.")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError("the request is not a JSON object.")
    return found


def run(app: Any, opened: socket.socket, host: str, token: str, title: str) -> None:
    """Print how to open the page, and serve it until Ctrl-C, or until the program that reads what
    is printed has ended (`| head -1`)."""

    async def look() -> None:
        serving.should_exit = serving.should_exit or reader_is_gone(1)

    async def start(**sockets: Any) -> None:
        await startup(**sockets)
        for line in lines(title, host, opened.getsockname()[1], token):
            print(line, flush=True)  # not before Ctrl-C has its handler

    try:
        serving = uvicorn_server(app)
        startup, serving.startup = serving.startup, start
        serving.config.callback_notify, serving.config.timeout_notify = look, 1
        serving.run(sockets=[opened])
    except KeyboardInterrupt:
        print("Stopped.", flush=True)
    finally:
        opened.close()


def reader_is_gone(fd: int) -> bool:
    """Whether the reader of a pipe has closed its end. False where the system cannot tell."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def uvicorn_server(app: Any) -> Any:
    """Uvicorn with what it would do beyond serving switched off."""
    import uvicorn

    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        loop="asyncio",
        http="h11",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def lines(title: str, host: str, port: int, token: str) -> list[str]:
    """The lines printed at the start."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    own = os.environ.get(TOKEN) == token
    query = f"?token=<{TOKEN}>" if own else f"?token={token}"
    found = [f"shows    {title}", f"page     http://{name}:{port}/{query}"]
    if is_loopback(host):
        found.append(
            f"remote   on the machine before you: ssh -L {port}:{name}:{port} "
            f"{socket.gethostname()}, then the same address"
        )
    return [*found, "end      Ctrl-C"]
