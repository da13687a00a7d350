"""Which requests a page answers: those of its own address, from its own page, with its token.

A page on loopback can be reached by other users of the machine, and by every page that the user's
browser shows. So each request must carry the token (a random one for each start), and must name an
allowed host (against DNS rebinding) and no other origin (against cross-site request forgery).
"""

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_BODY = 4 * 1024**2  # bytes of a request: a drawing of 1024 x 1024 pixels in colour
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+))(?::\d{1,5})?")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src"
    " 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors"
    " 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",  # the address may hold the token
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Refusal(Exception):
    """A request that is not answered: the status code and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """Wraps an ASGI application.

    Args:
        token: what the first request of a browser has as `/?token=...`; a cookie holds it then.
        hosts: names and addresses by which the page may be called, beside loopback.
        any_address: whether any IP address is allowed, for a page that listens on all of them. No
            page of a stranger can have an address as its name and reach this machine.
    """

    def __init__(
        self, app: ASGIApp, token: str, hosts: Iterable[str] = (), *, any_address: bool = False
    ) -> None:
        self.app, self.token = app, token
        self.hosts = {*LOOPBACK, *(host.lower() for host in hosts)}
        self.any_address = any_address
        # Cookies do not tell ports apart: pages of several runs need names of their own.
        self.cookie = f"ddpm-{hashlib.sha256(token.encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer: ASGIApp
        try:
            answer = self._login(scope) or self.app
        except Refusal as refusal:
            answer = PlainTextResponse(f"{refusal}\n", refusal.status)
        await answer(scope, receive, send_with_headers)

    def _login(self, scope: Scope) -> Response | None:
        """Check a request; the answer to one that brings the token in its address.

        Raises:
            Refusal: it must not be answered.
        """
        headers = Headers(scope=scope)
        self._check_source(scope["method"], headers)
        if scope["method"] == "POST":
            _check_body(headers)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if scope["method"] == "GET" and scope["path"] == "/" and given:
            self._check_token(given[-1])
            response = RedirectResponse("/", 303)
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return response
        self._check_token(self._stored(headers))
        return None

    def _check_source(self, method: str, headers: Headers) -> None:
        """Check where a request comes from, and to which name it was sent."""
        if method not in ("GET", "HEAD", "POST"):
            raise Refusal(405, "Method not allowed.")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_allowed(hosts[0]):
            raise Refusal(403, "This host is not allowed.")
        origins = headers.getlist("origin")
        if origins not in ([], [f"http://{hosts[0]}"]) or (method == "POST" and not origins):
            raise Refusal(403, "This origin is not allowed.")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refusal(403, "Requests of other sites are not allowed.")

    def _is_allowed(self, host: str) -> bool:
        """Whether the Host header names this machine as we know it; any port: SSH forwards them."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower()
        return name in self.hosts or (self.any_address and _is_address(name))

    def _stored(self, headers: Headers) -> str:
        """The token in the cookie; empty without one."""
        try:
            cookies = SimpleCookie("; ".join(headers.getlist("cookie")))
        except CookieError:
            return ""
        return cookies[self.cookie].value if self.cookie in cookies else ""

    def _check_token(self, given: str) -> None:
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            raise Refusal(401, "Open the address that the program has printed, with its token.")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_body(headers: Headers) -> None:
    """Check type and size of what is sent: forms of other sites cannot send JSON."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Send JSON.")
    length = headers.get("content-length", "")
    if not length.isascii() or not length.isdigit():
        raise Refusal(411, "Say how long the request is.")
    if int(length[:20]) > MAX_BODY:
        raise Refusal(413, f"A request may have {MAX_BODY} bytes.")
