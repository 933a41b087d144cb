"""The outermost layer of the server: who may ask, what becomes of faults, and the count of answers."""

from __future__ import annotations

import hmac
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qlora_cli import console
from qlora_cli.serve.http.answering import JSON_HEADERS, as_json
from qlora_cli.serve.http.faults import ApiFault
from qlora_cli.serve.http.serving import Access, Serving

OPEN_PATHS = frozenset(("/", "/health"))
"""Paths that need no key: the page asks for it, and a health check has none."""

GONE = 499
"""Counted for a client that went away, as nginx does."""

SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """Wraps the application; no fault of it gets past."""

    def __init__(self, app: ASGIApp, serving: Serving, paths: frozenset[str]) -> None:
        """
        Args:
            app: what is guarded.
            serving: the server.
            paths: that the application has.
        """
        self._app = app
        self._serving = serving
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI server calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        added = SAFE + _cross_origin(self._serving.access, origin)
        status = GONE

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS":
                await send_on({"type": "http.response.start", "status": 204, "headers": []})
                await send_on({"type": "http.response.body", "body": b""})
            else:
                await self._app(scope, receive, send_on)
        except (ClientDisconnect, TimeoutError):
            pass  # nobody listens: nothing can be told
        except ApiFault as fault:
            await _tell_fault(send_on, fault, is_begun=status != GONE)
        except Exception as fault:  # noqa: BLE001 - one request must not end the server, nor print a traceback
            console.warn(f"a request failed: {type(fault).__name__}: {' '.join(str(fault).split())[:300]}")
            await _tell_fault(send_on, ApiFault(500, "the server failed on this request"), is_begun=status != GONE)
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._serving.metrics.count(path, status, time.monotonic() - started)

    def _check(self, scope: Scope, headers: Headers) -> None:
        access, limits = self._serving.access, self._serving.limits
        if len(headers) > limits.max_headers:
            raise ApiFault(400, f"the request has more than {limits.max_headers} headers", code="too_many_headers")
        if sum(len(name) + len(value) for name, value in headers.raw) > limits.max_header_bytes:
            text = f"the headers are longer than {limits.max_header_bytes} bytes"
            raise ApiFault(400, text, code="headers_too_long")
        _check_host(access, headers)
        _check_origin(access, headers)
        if access.api_key and scope["method"] != "OPTIONS" and scope["path"] not in OPEN_PATHS:
            _check_key(access.api_key, headers.get("authorization", ""))


def _check_host(access: Access, headers: Headers) -> None:
    if access.hosts is None:
        return
    hosts = headers.getlist("host")
    if len(hosts) != 1 or _name_of(f"//{hosts[0]}") not in access.hosts:
        raise ApiFault(403, "the server is not addressed by this name", code="wrong_host")


def _check_origin(access: Access, headers: Headers) -> None:
    """Pages of other sites may not ask, unless they were allowed."""
    origin = headers.get("origin")
    if origin is None or {origin, "*"} & access.origins:
        return
    own = headers.get("host", "")
    if not own or origin.partition("://")[2] != own:
        raise ApiFault(403, "pages of this origin may not ask; --allow-origin allows one", code="wrong_origin")


def _name_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _check_key(wanted: str, given: str) -> None:
    scheme, _, key = given.partition(" ")
    # Compared in a time that does not depend on how much of it is right.
    if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), wanted.encode()):
        raise ApiFault(401, "the API key is missing or wrong", code="invalid_api_key")


def _cross_origin(access: Access, origin: str | None) -> list[tuple[bytes, bytes]]:
    if origin is None or not ({origin, "*"} & access.origins):
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1", "replace")),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-allow-methods", b"GET, POST"),
        (b"vary", b"origin"),
    ]


async def _tell_fault(send: Send, fault: ApiFault, *, is_begun: bool) -> None:
    if is_begun:  # the answer breaks off, which a client notices
        return
    headers = [*JSON_HEADERS, *((name.encode(), value.encode()) for name, value in fault.headers.items())]
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": as_json(fault.body)})
