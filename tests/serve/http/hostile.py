"""Requests that a server gets from the internet, and not from a client; bytes as they go over the line."""

from __future__ import annotations

import json

CHAT = "/v1/chat/completions"
GOOD = {"model": "first", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request with its own length."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chat(body: bytes, **headers: str) -> bytes:
    return http("POST", CHAT, body, **headers)


def field(**changes) -> bytes:
    return chat(json.dumps(GOOD | changes).encode())


WRONG_TYPES = [None, True, 5, 1.5, "text", [], {}, [[]], [None], {"a": {}}]

BODIES = {
    "nothing": b"",
    "cut": b'{"model": "first", "messages": [{"role"',
    "list": b"[]",
    "number": b"5",
    "two values": b"{} {}",
    "NaN": b'{"model": "first", "temperature": NaN, "messages": []}',
    "infinity": b'{"model": "first", "temperature": -Infinity}',
    "huge float": b'{"model": "first", "temperature": 1e999}',
    "huge int": b'{"model": "first", "seed": ' + b"9" * 5000 + b"}",
    "long int": b'{"model": "first", "max_tokens": ' + b"9" * 400 + b"}",
    "bad UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "first"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "half a pair": b'{"model": "first", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "half a pair as model": b'{"model": "\\udfff", "messages": []}',
    "key twice": b'{"model": "first", "model": "second", "messages": []}',
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep schema": b'{"model": "first", "messages": ' + b"[" * 90 + b"]" * 90 + b"}",
    "form": b"model=first&messages=hi",
    "gzip": b"\x1f\x8b\x08\x00" + bytes(40),
    "zero bytes": bytes(100),
    "zero in text": b'{"model": "fi\\u0000rst"}',
    "single quotes": b"{'model': 'first'}",
}

LINES = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60) + b"\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "negative length": b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: -5\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "length and chunks": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "bad chunk": b"POST "
    + CHAT.encode()
    + b" HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    "smuggled": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nhost: x\r\n folded: y\r\n\r\n",
    "header with zero": b"GET / HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
    "header flood": b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x: y\r\n" * 150 + b"\r\n",
    "long path": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    "path of bytes": b"GET /\xff\xfe HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
}

PATHS = [
    "/../../etc/passwd", "/v1/models/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1//models",
    "/%00", "/%ff%fe", "/v1/models/", "/docs", "/openapi.json", "/redoc", "/.env", "/chat_page.js", "/v1/embeddings",
    "/v1/chat/completions/", "*",
]  # fmt: skip

REQUESTS: dict[str, bytes] = {
    **{f"body: {name}": chat(body) for name, body in BODIES.items()},
    **{f"line: {name}": line for name, line in LINES.items()},
    **{f"path: {path}": http("GET", path) for path in PATHS},
    **{
        f"method: {method}": http(method, path)
        for method, path in (("GET", CHAT), ("PUT", CHAT), ("DELETE", "/v1/models"), ("POST", "/health"), ("BREW", "/"))
    },
    "too large": chat(b'{"model": "' + b"a" * (1 << 20) + b'"}'),
    "other site's page": chat(json.dumps(GOOD).encode(), origin="https://evil.example"),
    "sandboxed page": chat(json.dumps(GOOD).encode(), origin="null"),
    "rebound name": http("GET", "/v1/models").replace(b"host: 127.0.0.1", b"host: evil.example"),
    "broken name": http("GET", "/v1/models").replace(b"host: 127.0.0.1", b"host: [::1"),
    **{
        f"{name} {value!r}": field(**{name: value})
        for name, values in {
            "model": [None, 5, [], {}, "", "../../etc/passwd", "first\n"],
            "messages": [None, 5, "Hi", {}, [], [None], [[]], [{}], [{"role": "user"}], [{"role": 5, "content": "x"}]],
            "stream": [1, "yes", {}],
            "stop": [5, {}, [5], ["a"] * 17, ["a" * 2000], [""]],
            "tools": ["x", {"a": 1}, [5], [{}], [{"type": "function", "function": {"name": 5}}]],
            "temperature": ["hot", [], True, -1, 2.5],
            "top_p": [-0.1, 1.1, {}],
            "max_tokens": [0, -1, 1.5, "9", True],
            "seed": [1.5, "1", 2**64, True],
            "logprobs": [1, "yes"],
        }.items()
        for value in values
    },
    "content of parts": field(messages=[{"role": "user", "content": [{"type": "text", "text": 5}]}]),
    "calls without name": field(messages=[{"role": "assistant", "tool_calls": [{}]}, {"role": "user", "content": "x"}]),
}  # fmt: skip
