"""A small W&B server on the loopback: as much of it as the real client asks for, kept in memory.

What a client sends is kept as it came, to be looked at: runs with their rows, files, artifacts.
"""

import contextlib
import gzip
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from support.wandb_artifact_server import TEAM, Artifacts

MOST = 64 * 2**20  # bytes of a request


@dataclass
class StoredRun:
    """What the server knows of a run; `rows` are the lines of its history, as they were sent."""

    settings: dict = field(default_factory=dict)  # of the first upsert, with what later ones set
    rows: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False
    starts: int = 0
    used: list[str] = field(default_factory=list)  # ids of artifacts

    @property
    def config(self):
        values = json.loads(self.settings.get("config") or "{}")
        return {name: value["value"] for name, value in values.items()}

    @property
    def steps(self):
        """Our own `step` of the rows that hold a loss."""
        return [row["step"] for row in self.rows if "train/loss" in row]


class Server(Artifacts):
    """Starts with `with Server() as server`; stops at its end."""

    def __init__(self):
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: list = []
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []  # names of the operations, and paths
        self.unknown: list[str] = []
        self.commands: list[dict] = []  # for sweep agents, in turn
        self.sweep = ""  # its YAML
        self.agents: list[dict] = []
        self.refuses: tuple[str, ...] = ()  # operations that are answered by an error
        self.lock = threading.Lock()

    def __enter__(self):
        outer = self

        class Handler(_Handler):
            server_of = outer

        self.http = _Silent(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    @property
    def environment(self):
        """What makes a client talk to it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "k" * 40}

    # what is asked

    def graphql(self, name, variables, query):
        self.asked.append(name)
        if name in self.refuses:
            raise LookupError(f"{name} is refused")
        answer = getattr(self, f"ask_{name}", None)
        if answer is None:
            self.unknown.append(f"{name} {json.dumps(variables)} {' '.join(query.split())}")
            raise LookupError(f"no such operation: {name}")
        return answer(**variables)

    def ask_Viewer(self, **_):
        teams = {"edges": [{"node": {"name": TEAM}}]}
        who = {"id": "VTE=", "entity": TEAM, "username": "me", "name": "me", "email": "me@lab"}
        return {"viewer": {**who, "flags": "{}", "teams": teams, "admin": False}}

    def ask_RunResumeStatus(self, name, project=None, **_):
        run = self.runs.get(name)
        if run is None:
            return {"model": None}
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.settings["displayName"],
            "summaryMetrics": json.dumps(run.summary),
            "config": run.settings["config"],
            "tags": run.settings["tags"],
            "notes": run.settings["notes"],
            "historyLineCount": len(run.rows),
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "wandbConfig": json.dumps({"t": 1}),
        }
        who = {"id": "E1", "name": TEAM}
        return {"model": {"id": "P1", "name": project, "entity": who, "bucket": bucket}}

    def ask_UpsertBucket(self, name=None, **settings):
        name = name or settings["id"]
        new = name not in self.runs
        run = self.runs.setdefault(name, StoredRun())
        if settings.get("displayName"):
            run.starts += 1
        for key, value in settings.items():
            if value is not None or key not in run.settings:
                run.settings[key] = value
        project = {
            "id": "P1",
            "name": run.settings["project"] or "uncategorized",
            "entity": {"id": "E1", "name": run.settings["entity"] or TEAM},
        }
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.settings["displayName"] or name,
            "description": None,
            "config": run.settings["config"],
            "sweepName": run.settings.get("sweep"),
            "project": project,
            "historyLineCount": len(run.rows),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def ask_CreateRunFiles(self, run, files, **_):
        made = [{"name": f, "uploadUrl": f"{self.url}/blob/run/{run}/{f}"} for f in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": made}}

    def stream(self, run_id, body):
        """Lines of a run's files. A line that is sent again takes its own place again."""
        run = self.runs[run_id]
        for name, part in body.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                run.rows[part["offset"] : part["offset"] + len(lines)] = lines
            elif name == "wandb-summary.json" and lines:
                run.summary = lines[-1]
        run.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_code = body["exitcode"]

    # sweeps

    def ask_SweepWithRuns(self, sweep, **_):
        about = {"id": "SW", "name": sweep, "method": "random", "state": "RUNNING"}
        found = {**about, "config": self.sweep, "runs": {"edges": []}}
        return {"project": {"sweep": found}}

    def ask_CreateAgent(self, **v):
        self.agents.append(v)
        return {"createAgent": {"agent": {"id": "AG1"}}}

    def ask_Heartbeat(self, **v):
        """One command at a time, the next when no run is at work."""
        states = json.loads(v.get("runState") or "{}")
        busy = any(state for state in states.values())
        commands = [] if busy else self.commands[:1]
        del self.commands[: len(commands)]
        if not commands and not busy:
            commands = [{"type": "exit"}]
        answer = {"agent": {"id": "AG1"}, "commands": json.dumps(commands)}
        return {"agentHeartbeat": answer}

    # the loopback's requests

    def answer(self, handler, body):
        """Status, and what is answered: JSON, or bytes as they are."""
        path = unquote(urlsplit(handler.path).path)
        if path == "/graphql":
            asked = json.loads(body)
            query = asked["query"]
            name = asked.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
            try:
                return 200, {"data": self.graphql(name, asked.get("variables") or {}, query)}
            except LookupError as error:
                return 200, {"data": None, "errors": [{"message": str(error)}]}
        self.asked.append(f"{handler.command} {path.rpartition('/')[0]}")
        if path.startswith("/blob/"):
            name = path.removeprefix("/blob/")
            if handler.command == "PUT":
                self.blobs[name] = body
                return 200, {}
            return (200, self.blobs[name]) if name in self.blobs else (404, {})
        if path.startswith("/artifactsV2/"):
            blob = self.blobs.get(f"md5/{path.split('/')[-2]}")
            return (404, {}) if blob is None else (200, blob)
        if path.endswith("/file_stream"):
            self.stream(path.split("/")[-2], json.loads(body))
            return 200, {}
        return (200, {}) if path in ("/", "/sdk/otel/v1/metrics") else (404, {})


class _Silent(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that goes away is no error of ours."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Server

    def do_GET(self):
        length = min(int(self.headers.get("Content-Length") or 0), MOST)
        body = self.rfile.read(length)
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with self.server_of.lock:
            status, answer = self.server_of.answer(self, body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    do_POST = do_PUT = do_GET

    def log_message(self, *_):
        pass
