"""A small server that speaks the calls of huggingface_hub: a repository's files and commits."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories by name, each a list of commits: (sha, {file: bytes}). Files above `large` bytes
    are sent by the protocol of Git LFS, to `uploaded`."""

    def __init__(self):
        self.repositories, self.asked, self.tokens, self.created = {}, [], [], []
        self.large, self.uploaded = float("inf"), {}

    def commit(self, name, files):
        commits = self.repositories.setdefault(name, [])
        sha = hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest()
        commits.append((sha, dict(files)))
        return sha

    def at(self, name, revision):
        commits = self.repositories.get(name, [])
        found = [c for c in commits if revision in (c[0], "main")]
        return found[-1] if found else None


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, content, status=200, **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def none(self, code):
            self.answer({"error": code}, 404, X_Error_Code=code)

        def do_GET(self):
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path))
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                at = hub.at(found[1], found[2] or "main")
                if at is None:
                    known = found[1] in hub.repositories
                    return self.none("RevisionNotFound" if known else "RepoNotFound")
                files = [{"rfilename": n, "size": len(c)} for n, c in at[1].items()]
                return self.answer({"id": found[1], "sha": at[0], "siblings": files})
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                at = hub.at(found[1], found[2])
                if at is None or found[3] not in at[1]:
                    return self.none("EntryNotFound")
                content = at[1][found[3]]
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.answer(content, ETag=etag, X_Repo_Commit=at[0])
            return self.none("NotFound")

        do_HEAD = do_GET

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.uploaded[hashlib.sha256(body).hexdigest()] = body
            self.answer(b"")

        def do_POST(self):
            hub.asked.append((self.command, self.path))
            hub.tokens.append(self.headers.get("Authorization"))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = f"http://{self.headers['Host']}"
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                hub.created.append((name, asked.get("private", asked.get("visibility"))))
                if name not in hub.repositories:
                    hub.commit(name, {})
                return self.answer({"url": f"{url}/{name}", "id": name, "name": name})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if re.search(r"/preupload/", self.path):
                files = json.loads(body)["files"]
                modes = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["size"] > hub.large else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for f in files
                ]
                return self.answer({"files": modes})
            if self.path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    asked | {"actions": {"upload": {"href": f"{url}/lfs/{asked['oid']}"}}}
                    for asked in json.loads(body)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main.*", self.path):
                rows = [json.loads(line) for line in body.splitlines() if line]
                files = {
                    row["value"]["path"]: base64.b64decode(row["value"]["content"])
                    for row in rows
                    if row["key"] == "file"
                } | {
                    row["value"]["path"]: hub.uploaded[row["value"]["oid"]]
                    for row in rows
                    if row["key"] == "lfsFile"
                }
                sha = hub.commit(found[1], hub.at(found[1], "main")[1] | files)
                return self.answer(
                    {
                        "commitUrl": f"{url}/{found[1]}/commit/{sha}",
                        "commitOid": sha,
                        "success": True,
                    }
                )
            return self.none("NotFound")

    return Handler


@contextmanager
def serving(hub):
    """The server's address, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
