"""What a client is told when a request is not answered: a status and the error body of OpenAI's API."""

from __future__ import annotations

from typing import Any

from qlora_cli.data.read.error_text import shown
from qlora_cli.errors import QloraError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
"""Status -> `type` of the body."""

RETRY_SECONDS = 2
"""After so long a client that found the queue full may ask again."""


class ApiFault(Exception):  # noqa: N818 - most are the client's
    """A request that is refused or has failed.

    Args:
        status: HTTP status.
        text: what is wrong, in one line.
        parameter: the field of the request that is at fault.
        code: a word for programs.
    """

    def __init__(self, status: int, text: str, *, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.parameter = parameter
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer, as JSON."""
        kind = TYPES[self.status]
        return {"error": {"message": self.text, "type": kind, "param": self.parameter, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": str(RETRY_SECONDS)} if self.status in (429, 503) else {}


def bad_field(name: str, text: str) -> ApiFault:
    """A field whose value cannot be used.

    >>> bad_field("top_p", "must be at most 1, found 2").text
    'top_p must be at most 1, found 2'
    """
    return ApiFault(400, f"{name} {text}", parameter=name, code="invalid_value")


def unsupported(name: str, value: Any, way_on: str = "leave it out") -> ApiFault:
    """A field that would change the answer, and that this server cannot follow."""
    text = f"{name} {shown(value)} is not supported: {way_on}"
    return ApiFault(400, text, parameter=name, code="unsupported_parameter")


def of_error(error: QloraError, parameter: str | None = None) -> ApiFault:
    """An error of the project as a client reads it, with its hint."""
    problem = error.problems[0]
    text = f"{problem.text} ({problem.hint})" if problem.hint else problem.text
    return ApiFault(400, text, parameter=parameter, code="invalid_value")
