"""A real server of chat completions on this machine, which behaves as badly as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answers:
    """What the server does with each request, in order; the last one for all that follow.

    Args:
        *steps: each writes its answer through the handler, given the text that was asked.
    """

    def __init__(self, *steps: Callable[[BaseHTTPRequestHandler, str], None]) -> None:
        self.steps = list(steps)
        self.asked: list[str] = []
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()

    def next(self) -> Callable[[BaseHTTPRequestHandler, str], None]:
        with self.lock:
            return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]


def says(text: str | Callable[[str], str]) -> Callable[[BaseHTTPRequestHandler, str], None]:
    """A chat completion with that text, or what a function makes of the question."""

    def step(handler: BaseHTTPRequestHandler, asked: str) -> None:
        content = text if isinstance(text, str) else text(asked)
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        _write(handler, 200, body)

    return step


def fails(code: int, message: str = "no", **headers: str) -> Callable[[BaseHTTPRequestHandler, str], None]:
    """An error as OpenAI writes it."""
    body = json.dumps({"error": {"message": message}}).encode()
    return lambda handler, _: _write(handler, code, body, headers)


def raw(body: bytes, length: int | None = None) -> Callable[[BaseHTTPRequestHandler, str], None]:
    """Those bytes; with a length that is not theirs the connection breaks in the middle."""
    return lambda handler, _: _write(handler, 200, body, length=length)


def hangs_up(handler: BaseHTTPRequestHandler, _: str) -> None:
    """Nothing."""
    handler.close_connection = True


def sleeps(seconds: float) -> Callable[[BaseHTTPRequestHandler, str], None]:
    """Nothing, after a while."""

    def step(handler: BaseHTTPRequestHandler, asked: str) -> None:
        time.sleep(seconds)
        hangs_up(handler, asked)

    return step


def drips(handler: BaseHTTPRequestHandler, _: str) -> None:
    """An answer that never ends, a byte at a time."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(100):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


def _write(handler, code, body, headers=None, length=None):
    handler.send_response(code)
    for name, value in (headers or {}).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = length is not None


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    """The URL of a running server."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = body["messages"][0]["content"]
            with answers.lock:
                answers.asked.append(asked)
                answers.bodies.append(body)
                answers.headers.append(dict(self.headers))
            answers.next()(self, asked)

        def do_GET(self):
            with answers.lock:
                answers.asked.append(f"GET {self.path}")
            _write(self, 200, b"{}")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
