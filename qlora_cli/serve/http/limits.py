"""Bounds of what a client may send and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HttpLimits:
    """Limits of the server; those of the engine are `EngineLimits`."""

    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 32 << 10
    max_headers: int = 100
    header_seconds: float = 10.0
    """From the first byte of a request, or the connection, to the end of its headers."""

    body_seconds: float = 30.0
    """From the headers to the end of the body."""

    answer_seconds: float = 600.0
    """From the end of the body to the end of the answer, the time in the queue included."""

    send_seconds: float = 30.0
    """For so long a client may take nothing of what it is sent."""

    idle_seconds: int = 10
    """For so long a connection is kept open between two requests."""

    grace_seconds: int = 60
    """After a stop signal answers may take so long to be finished."""

    default_new_tokens: int = 4096
    """Longest answer where a request names none; the context may be shorter."""
