"""Which requests are refused: every one that does not come from the page itself."""

import asyncio
import json

import pytest
from support.report_folders import run_folder
from support.web import HOST, TOKEN, call, cookie, get, post

from ddpm.runner.runs import run_dir
from ddpm.web.runs import Runs
from ddpm.web.watch import application

OWN = f"http://{HOST}"
LONG = [("Content-Length", str(10**9))]
JSON = [("Content-Type", "application/json"), ("Content-Length", "2")]


@pytest.fixture
def folder(tmp_path):
    """The folder of a run that trains."""
    path = run_folder(
        tmp_path / "run", [1.0], status={"state": "running"}, steps=[10], kind="trains"
    )
    with run_dir.lock(path):
        yield path


@pytest.fixture
def app(folder):
    return application(Runs(lambda: [folder], "runs", 9), TOKEN)


# What is wrong with a request, and the request: method, path, headers without the cookie, status.
HOSTILE = {
    "a name that points here (DNS rebinding)": ("GET", "/runs", [("Host", "evil.example")], 403),
    "our address inside of a name": ("GET", "/runs", [("Host", "127.0.0.1.evil.example")], 403),
    "our address as a user name": ("GET", "/runs", [("Host", "127.0.0.1@evil.example")], 403),
    "no host": ("GET", "/runs", [], 403),
    "two hosts": ("GET", "/runs", [("Host", HOST), ("Host", "evil.example")], 403),
    "an address of another machine": ("GET", "/runs", [("Host", "10.0.0.1:8400")], 403),
    "a form of another page (CSRF)": (
        *("POST", "/ask", [("Host", HOST), ("Origin", "http://evil.example"), *JSON], 403),
    ),
    "a page of a file": ("POST", "/ask", [("Host", HOST), ("Origin", "null"), *JSON], 403),
    "a page of another port": (
        *("POST", "/ask", [("Host", HOST), ("Origin", "http://127.0.0.1:9999"), *JSON], 403),
    ),
    "no origin": ("POST", "/ask", [("Host", HOST), *JSON], 403),
    "a form, which needs no permission": (
        *("POST", "/ask", [("Host", HOST), ("Origin", OWN), ("Content-Type", "text/plain")], 415),
    ),
    "a picture in another page": (
        *("GET", "/runs", [("Host", HOST), ("Sec-Fetch-Site", "cross-site")], 403),
    ),
    "a request for permission (CORS)": (
        *("OPTIONS", "/ask", [("Host", HOST), ("Origin", "http://evil.example")], 405),
    ),
    "another method": ("DELETE", "/runs", [("Host", HOST), ("Origin", OWN)], 405),
    "a huge request": (*("POST", "/ask", [("Host", HOST), ("Origin", OWN), JSON[0], *LONG], 413),),
    "a request without an end": ("POST", "/ask", [("Host", HOST), ("Origin", OWN), JSON[0]], 411),
}


@pytest.mark.parametrize(("method", "path", "headers", "status"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_request_is_refused_even_with_the_token(
    method, path, headers, status, app, folder
):
    get(app, "/runs")
    before = sorted(folder.rglob("*"))
    answer = call(app, method, path, [*headers, cookie(app)], b"{}")
    assert answer.status == status
    assert b"run" not in answer.body
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("path", ["/", "/runs", "/watch.js", "/picture/x/1", "/nothing"])
@pytest.mark.parametrize("value", [None, "", "b" * 24, TOKEN[:-1], TOKEN + "a", "ü", '";\0'])
def test_requests_without_the_token_are_refused(path, value, app):
    headers = [("Host", HOST)]
    headers += [] if value is None else [("Cookie", f"{app.cookie}={value}")]
    assert call(app, "GET", path, headers).status == 401
    assert call(app, "GET", path, headers, query="token=wrong").status == 401
    if path != "/":
        assert call(app, "GET", path, headers, query=f"token={TOKEN}").status == 401


def test_printed_address_sets_an_http_only_cookie(app):
    answer = call(app, "GET", "/", [("Host", HOST)], query=f"token={TOKEN}")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert answer.headers["set-cookie"].split("; ") == [
        *(f"{app.cookie}={TOKEN}", "HttpOnly", "Path=/", "SameSite=strict"),
    ]
    assert get(app, "/").status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9", "[::1]:8400", "LOCALHOST"])
def test_loopback_names_are_accepted_with_any_port(host, app):
    """SSH may forward another port."""
    assert call(app, "GET", "/", [("Host", host), cookie(app)]).status == 200


def test_public_page_accepts_only_its_address(folder):
    app = application(Runs(lambda: [folder], "runs", 9), TOKEN, "0.0.0.0")
    for host, status in {"10.0.0.7:8400": 200, "[fe80::1]": 200, "evil.example": 403}.items():
        assert call(app, "GET", "/", [("Host", host), cookie(app)]).status == status
    app = application(Runs(lambda: [folder], "runs", 9), TOKEN, "10.0.0.7")
    for host, status in {"10.0.0.7:8400": 200, "10.0.0.8": 403}.items():
        assert call(app, "GET", "/", [("Host", host), cookie(app)]).status == status


PATHS = ["..", "../config.yaml", "..%2fconfig.yaml", "config.yaml", "step-000010.png", "-1", "1e1"]
PATHS += ["0x0a", "10.png", "٣", "9" * 400, "%00", "grid"]


@pytest.mark.parametrize("which", PATHS)
def test_requests_cannot_name_files(which, app, folder):
    [run] = get(app, "/runs").json["runs"]
    for path in (f"/picture/{run['id']}/{which}", f"/picture/{folder}/10", f"/picture/{which}/10"):
        answer = get(app, path)
        assert answer.status == 404
        assert str(folder) not in answer.body.decode()
    for named in (str(folder), "run", which, "../run"):
        assert post(app, "/ask", {"run": named, "action": "sample"}).status == 400
    for action in (which, "../../x", "config.yaml", "status.json", ""):
        assert post(app, "/ask", {"run": run["id"], "action": action}).status == 400
    assert get(app, f"/picture/{run['id']}/10").headers["content-type"] == "image/png"


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"null", b"\xff", b"[" * 5000])
def test_bodies_other_than_json_objects_are_refused(body, app):
    headers = [("Host", HOST), ("Origin", OWN), cookie(app), JSON[0]]
    answer = call(app, "POST", "/ask", [*headers, ("Content-Length", str(len(body)))], body)
    assert (answer.status, answer.json["error"]) == (400, "the request is not a JSON object.")


def test_body_longer_than_its_content_length_is_refused(app, monkeypatch):
    monkeypatch.setattr("ddpm.web.guard.MAX_BODY", 100)
    body = json.dumps({"run": "x" * 200}).encode()
    headers = [("Host", HOST), ("Origin", OWN), cookie(app), *JSON]
    assert call(app, "POST", "/ask", headers, body).json["error"] == "the request is too long."


def test_every_response_has_a_strict_content_security_policy(app):
    for answer in (get(app, "/"), get(app, "/nothing"), call(app, "GET", "/", [])):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_pages_refer_only_to_their_own_files(app):
    for path in ("/", "/watch.js", "/common.js", "/watch.css", "/common.css", "/report.css"):
        text = get(app, path).body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", ""), path
        assert "innerHTML" not in text


def test_web_sockets_are_closed(app):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "websocket", "path": "/runs", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
