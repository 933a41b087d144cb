"""JSON as the standard says, where Python's parser is more lenient than training can be.

Refused besides broken text: a key that occurs twice in one object (all but the last would be lost), NaN and the
infinities, half of a surrogate pair (no tokenizer takes it), and values nested so deeply that code after the parser
would run out of stack.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from qlora_cli.data.read.error_text import shown

MAX_DEPTH = 100
"""Levels of lists and objects inside each other."""

_STRING_OR_CONSTANT = re.compile(r'"(?:\\.|[^"\\])*"|(-?\bInfinity\b|\bNaN\b)', re.DOTALL)
TOO_DEEP = f"nested too deeply (more than {MAX_DEPTH} levels)"


class JsonError(ValueError):
    """An error in a JSON text, with its position."""

    def __init__(self, text: str, position: int, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.position = position
        """Character of the fault, counted from 0."""

        self.hint = hint


class _ValueError(ValueError):
    """A value that Python's parser takes and this module does not."""


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise _ValueError(f"key {shown(duplicate)} occurs twice in one object")
    return row


def _refuse_constant(constant: str) -> None:
    raise _ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _ValueError(f"the number {digits[:20]} is too large")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant, parse_float=_finite
)


def decode_json(text: str, position: int = 0) -> tuple[Any, int]:
    """The JSON value that starts at `position`, and where it ends.

    >>> decode_json('{"a": [1, 2]} and more')
    ({'a': [1, 2]}, 13)

    Raises:
        JsonError: if it is not strict JSON.
    """
    try:
        value, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        hint = "JSON needs double quotes, no trailing comma and no comments"
        raise JsonError(f"broken JSON: {error.msg} (column {error.colno})", error.pos, hint) from error
    except RecursionError as error:
        raise JsonError(TOO_DEEP, position) from error
    except _ValueError as error:
        fault_at = position
        if "is not JSON" in str(error):
            constants = (match for match in _STRING_OR_CONSTANT.finditer(text, position) if match.group(1))
            fault_at = next((match.start() for match in constants), position)
        raise JsonError(str(error), fault_at) from error
    except ValueError as error:  # Python's guard against quadratic conversion
        raise JsonError("a whole number of more than 4300 digits", position) from error
    num_openings = text.count("[", position, end) + text.count("{", position, end)
    if num_openings > MAX_DEPTH and _is_too_deep(value):
        raise JsonError(TOO_DEEP, position)
    if "\\" in text and ("\\ud" in text or "\\uD" in text):
        _refuse_lone_surrogates(value, position)
    return value, end


def load_json(text: str) -> Any:
    """The value of a text that is JSON from end to end.

    Raises:
        JsonError: if it is not strict JSON, or something follows the value.
    """
    value, end = decode_json(text, len(text) - len(text.lstrip(" \t\r\n")))
    rest = text[end:].strip(" \t\r\n")
    if rest:
        raise JsonError(f"text after the value: {shown(rest)}", end)
    return value


def _is_too_deep(value: Any) -> bool:
    level = [value] if type(value) is dict or type(value) is list else []
    for _ in range(MAX_DEPTH):
        below = []
        for container in level:
            items = container.values() if type(container) is dict else container
            below += [item for item in items if type(item) is dict or type(item) is list]
        if not below:
            return False
        level = below
    return True


def _refuse_lone_surrogates(value: Any, position: int) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        hint = "write the character itself, or both halves of the pair"
        raise JsonError("half of a surrogate pair (\\ud800-\\udfff) in a string", position, hint) from error
