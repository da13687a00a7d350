"""Requests to the pages: straight to the application, or over a socket."""

import asyncio
import contextlib
import json
import threading
from typing import NamedTuple

from ddpm.web import server

TOKEN = "a" * 24
HOST = "127.0.0.1:8400"


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def events(self):
        return [json.loads(line) for line in self.body.splitlines()]


def call(app, method, path, headers=(), body=b"", query=""):
    """The answer of an ASGI application to one request; headers as pairs, a name may come twice."""
    sent = [{"type": "http.request", "body": body, "more_body": False}]
    got = []

    async def receive():
        if sent:
            return sent.pop()
        await asyncio.sleep(3600)

    async def send(message):
        got.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8400),
    }
    asyncio.run(app(scope, receive, send))
    start = next(m for m in got if m["type"] == "http.response.start")
    content = b"".join(m.get("body", b"") for m in got if m["type"] == "http.response.body")
    return Answer(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, content)


def cookie(app):
    return ("Cookie", f"{app.cookie}={TOKEN}")


def get(app, path, query=""):
    """A request of the page itself."""
    return call(app, "GET", path, [("Host", HOST), cookie(app)], query=query)


def post(app, path, content):
    body = json.dumps(content).encode()
    headers = [("Host", HOST), ("Origin", f"http://{HOST}"), cookie(app)]
    headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return call(app, "POST", path, headers, body)


@contextlib.contextmanager
def served(app):
    """The address at which an application is served, by a thread."""
    opened = server.bind("127.0.0.1", 0)
    serving = server.uvicorn_server(app)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{opened.getsockname()[1]}/?token={app.token}"
    finally:
        serving.should_exit = True
        thread.join()
        opened.close()
