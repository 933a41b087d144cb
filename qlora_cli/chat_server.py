"""Questions to a chat model over an OpenAI-compatible URL: retries, rate limits, and a key that stays where it is."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from qlora_cli.errors import ArgumentError, ResourceError
from qlora_cli.secrets import redacted

KEY_VARIABLE = "QLORA_JUDGE_API_KEY"
"""Environment variable of the key; a name of its own, so that no key goes to a server that it was not meant for."""

LATER = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Status codes after which the same question may be answered."""

LONGEST_WAIT = 300.0
"""Seconds; a server that asks for more is not waited for."""

MAX_ANSWER_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 65_536


@dataclass(frozen=True)
class ChatServer:
    """Where a model answers."""

    url: str
    """Up to `/v1`, as other clients take it."""

    model: str
    timeout_seconds: float = 120.0
    """For one whole answer."""

    attempts: int = 6
    first_wait: float = 1.0
    """Seconds before the second attempt; twice as many before each next one."""


class _Temporary(Exception):  # noqa: N818 - not for users
    """The same question may be answered later."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class NoRedirects(HTTPRedirectHandler):
    """The key goes to the server that was named and to no other."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        """Follow nothing; the status becomes an HTTPError."""


class ChatClient:
    """Asks one server, from any number of threads.

    Args:
        server: where to ask.
        sleep: waits so many seconds.

    Raises:
        ArgumentError: the URL is none, or would send the key unencrypted.
    """

    def __init__(self, server: ChatServer, sleep: Callable[[float], None] = time.sleep) -> None:
        self._server = server
        self._sleep = sleep
        self._key = key_in(KEY_VARIABLE)
        self._address = f"{server_url(server.url, KEY_VARIABLE)}/chat/completions"
        self._opener = build_opener(NoRedirects)
        self._pause_lock = threading.Lock()
        self._pause_until = 0.0

    @property
    def model(self) -> str:
        """Name of the model that answers."""
        return self._server.model

    def ask(self, text: str) -> str:
        """The model's answer to `text`.

        Raises:
            ArgumentError: the server refuses the key, the model or the question.
            ResourceError: it gave no answer in any attempt.
        """
        wait, reason = self._server.first_wait, ""
        for attempt in range(self._server.attempts):
            self._wait_for_others()
            try:
                return self._asked_once(text)
            except _Temporary as fault:
                reason = str(fault)
                if attempt + 1 == self._server.attempts or (fault.wait or 0) > LONGEST_WAIT:
                    break
                self._pause(fault.wait)
                self._sleep(max(wait, fault.wait or 0.0))
                wait *= 2
        raise ResourceError(
            f"the judge gave no answer in {attempt + 1} attempts: {reason}",
            place=self._server.url,
            hint="run the same command again: what was judged is kept, and it goes on from there",
        )

    def _pause(self, seconds: float | None) -> None:
        """Keep all threads from asking for as long as the server said."""
        if seconds:
            with self._pause_lock:
                self._pause_until = max(self._pause_until, time.monotonic() + seconds)

    def _wait_for_others(self) -> None:
        with self._pause_lock:
            left = self._pause_until - time.monotonic()
        if left > 0:
            self._sleep(left)

    def _asked_once(self, text: str) -> str:
        body = {"model": self._server.model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        request = Request(self._address, json.dumps(body).encode(), headers_with(self._key), method="POST")
        deadline = time.monotonic() + self._server.timeout_seconds
        try:
            with self._opener.open(request, timeout=self._server.timeout_seconds) as response:
                return _content(_read(response, deadline))
        except HTTPError as fault:
            raise self._of_status(fault, deadline) from None
        except TimeoutError:
            raise _Temporary(f"no answer in {self._server.timeout_seconds:g} s") from None
        except (URLError, http.client.HTTPException, OSError) as fault:
            raise _Temporary(one_line(getattr(fault, "reason", None) or fault)) from None

    def _of_status(self, fault: HTTPError, deadline: float) -> Exception:
        """What a status code other than 200 means."""
        try:
            said = message_in(_read(fault, deadline))
        except (OSError, http.client.HTTPException, _Temporary):
            said = ""
        status = f"status {fault.code}" + (f": {said}" if said else "")
        if fault.code in LATER:
            return _Temporary(status, _retry_after(fault.headers.get("Retry-After")))
        return refused("the judge", fault.code, said, ServerNames(self._server.url, self._server.model, KEY_VARIABLE))


@dataclass(frozen=True)
class ServerNames:
    """What an error of a server is told with."""

    url: str
    model: str
    key_variable: str


def refused(who: str, status: int, said: str, names: ServerNames) -> ArgumentError:
    """The error of a status code after which asking again is of no use.

    Args:
        who: as the subject of the sentence.
        status: the code.
        said: by the server; empty where it said nothing.
        names: URL, model and variable of the key.
    """
    hints = {
        401: f"export {names.key_variable} with a key of that server",
        403: f"export {names.key_variable} with a key that may use '{names.model}'",
        404: f"the URL ends before /chat/completions, as in http://localhost:8000/v1; is its model '{names.model}'?",
    }
    hint = hints.get(status, "look at the URL and at the name of the model")
    return ArgumentError(f"{who} answers with status {status}" + f": {said}" * bool(said), place=names.url, hint=hint)


def key_in(variable: str) -> str:
    """The key in an environment variable; empty where there is none.

    Raises:
        ArgumentError: if no header can hold it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ArgumentError("the key holds a character that no header can hold", place=variable)
    return key


def headers_with(key: str) -> dict[str, str]:
    """Headers of a question, with the key where there is one."""
    headers = {"Content-Type": "application/json", "User-Agent": "qlora"}
    return headers | ({"Authorization": f"Bearer {key}"} if key else {})


def server_url(url: str, key_variable: str) -> str:
    """The URL of a server up to `/v1`, checked.

    Args:
        url: as it was given, with or without /chat/completions.
        key_variable: variable that may hold a key, which goes unencrypted to no other machine.

    Raises:
        ArgumentError: the URL is none, holds a password, or would send the key unencrypted.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as fault:
        raise ArgumentError(f"is no URL: {fault}", place=url, hint="write http://localhost:8000/v1") from fault
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ArgumentError("is no URL of a server", place=url, hint="write it as in http://localhost:8000/v1")
    if parts.username or parts.password:
        raise ArgumentError("a URL with a password in it", place=url, hint=f"leave it out, and export {key_variable}")
    if key_in(key_variable) and parts.scheme == "http" and not is_local(host):
        raise ArgumentError(
            f"the key in {key_variable} would be sent unencrypted", place=url, hint="write https://, or unset it"
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def is_local(host: str) -> bool:
    """Whether a host is this machine.

    >>> [is_local(host) for host in ("localhost", "127.0.0.1", "::1", "10.0.0.3", "example.com")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(response: Any, deadline: float) -> bytes:
    """The whole answer, unless it takes too long or is too large."""
    parts = []
    while part := response.read1(CHUNK_BYTES):
        parts.append(part)
        if time.monotonic() > deadline:
            raise _Temporary("the answer came too slowly")
        if sum(map(len, parts)) > MAX_ANSWER_BYTES:
            raise _Temporary(f"the answer is larger than {MAX_ANSWER_BYTES:,} bytes")
    return b"".join(parts)


def _content(body: bytes) -> str:
    """The text of a chat completion."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise _Temporary(f"the answer is no chat completion: {one_line(body[:80])}") from None
    if not isinstance(content, str):
        raise _Temporary("the answer has no text")
    return content


def message_in(body: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        found = json.loads(body)
        error = found.get("error", found)
        return one_line(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        return one_line(body[:200])


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait, from a number of them or a date (RFC 9110, section 10.2.3).

    >>> _retry_after("7"), _retry_after("soon"), _retry_after(None)
    (7.0, None, None)
    """
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def one_line(said: object) -> str:
    """What a server or the system said, in one line without secrets, cut at 200 characters."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    return redacted(" ".join(text.split()))[:200]
