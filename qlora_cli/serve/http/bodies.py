"""The body of a request: within its size and its time, UTF-8, strict JSON, an object."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from qlora_cli.data.read.strict_json import JsonError, load_json
from qlora_cli.serve.http.faults import ApiFault
from qlora_cli.serve.http.limits import HttpLimits


async def read_body(request: Request, limits: HttpLimits) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        ApiFault: 400 for what is no JSON object, 408 for a body that does not come, 413 for one that is too long.
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limits.max_body_bytes:
        raise _too_long(limits)
    received = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                received += part
                if len(received) > limits.max_body_bytes:
                    raise _too_long(limits)
    except TimeoutError:
        text = f"the body did not come within {limits.body_seconds:g} seconds"
        raise ApiFault(408, text, code="timeout") from None
    return await asyncio.to_thread(_parsed, bytes(received))


def _too_long(limits: HttpLimits) -> ApiFault:
    return ApiFault(413, f"the body is longer than {limits.max_body_bytes} bytes", code="too_long")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        value = load_json(body.decode())
    except UnicodeDecodeError as error:
        raise ApiFault(400, f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from error
    except JsonError as error:
        raise ApiFault(400, f"the body is not JSON: {error.text}", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiFault(400, "the body must be a JSON object", code="invalid_json")
    return value
