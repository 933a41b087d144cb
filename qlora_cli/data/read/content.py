"""The content of a message: text, a list of typed parts, or a tool call written as text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from qlora_cli.data.example import Place
from qlora_cli.data.read.error_text import kind_of, row_error, shown
from qlora_cli.data.read.strict_json import JsonError, decode_json, load_json

TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("reasoning", "thinking")
CALL_PARTS = ("tool_call", "function_call", "tool_use")
VALUE_KEYS = ("value", "content")
"""Keys of a part that may hold its value, besides the one named as its type."""

_THOUGHT = re.compile(r"\s*<(think|thinking)>(.*?)</\1>", re.DOTALL)
_ONLY_TEXT = 'only text is trained: {"type": "text", "text": "..."}'


@dataclass
class Content:
    """Parts of the content of one message."""

    text: str = ""
    reasoning: str = ""
    calls: list[Any] = field(default_factory=list)
    """Tool calls as written, unchecked."""


def read_json_text(text: str, name: str, place: Place) -> Any:
    """The value of JSON inside a string.

    Raises:
        RowError: if it is not strict JSON.
    """
    try:
        return load_json(text)
    except JsonError as error:
        raise row_error(f"{name}: {error.text}", place, error.hint) from error


def read_content(value: Any, name: str, place: Place) -> Content:
    """Text as it is, or the parts of a list such as `[{"type": "text", "text": "Hi"}]`.

    Text parts are joined. Reasoning comes before the text, and calls after it, as chat templates print them; another
    order is refused, since it could not be kept.

    Raises:
        RowError: another type, a part that is neither text, reasoning nor a call, or parts out of order.
    """
    if isinstance(value, str):
        return Content(value)
    if not isinstance(value, list):
        raise row_error(f"{name} must be a string, found {kind_of(value)}", place)
    content = Content()
    for number, part in enumerate(value, start=1):
        part_name = f"part {number} of {name}"
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind in REASONING_PARTS:
            _expect_in_order("reasoning", bool(content.text.strip() or content.calls), part_name, place)
            content.reasoning += _text_of_part(part, kind, part_name, place)
        elif kind in CALL_PARTS:
            content.calls += _calls_of_part(part, part_name, place)
        else:
            text = _text_of_part(part, kind, part_name, place)
            _expect_in_order("text", bool(content.calls and text.strip()), part_name, place)
            content.text += text
    return content


def _expect_in_order(what: str, is_late: bool, name: str, place: Place) -> None:
    if is_late:
        raise row_error(
            f"{name} is {what} behind {'a tool call' if what == 'text' else 'what it reasons about'}",
            place,
            "chat templates print reasoning, then text, then tool calls: split the turn in that order",
        )


def value_key(part: dict[str, Any]) -> str | None:
    """The key of a typed part that holds its value."""
    kind = part.get("type", "text")
    own = ("text",) if kind in TEXT_PARTS else (kind, "text")
    return next((key for key in (*own, *VALUE_KEYS) if isinstance(part.get(key), str)), None)


def _text_of_part(part: Any, kind: Any, name: str, place: Place) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise row_error(f"{name} is not text but {kind_of(part)}", place, _ONLY_TEXT)
    if kind not in TEXT_PARTS + REASONING_PARTS:
        raise row_error(f"{name} is not text but type {shown(kind)}", place, _ONLY_TEXT)
    key = value_key(part)
    if key is None:
        raise row_error(f"{name} is not text but {kind_of(part.get('text', part.get('value')))}", place, _ONLY_TEXT)
    return str(part[key])


def _calls_of_part(part: dict[str, Any], name: str, place: Place) -> list[Any]:
    """The calls that a part holds: the part itself, or its `value`, as JSON or its text."""
    for key in (part["type"], "function", *VALUE_KEYS):
        value = part.get(key)
        if isinstance(value, str) and key != "function":
            value = read_json_text(value, f"the call of {name}", place)
        if isinstance(value, dict | list):
            return value if isinstance(value, list) else [value]
    return [{key: value for key, value in part.items() if key != "type"}]


def read_call_text(text: str, name: str, place: Place) -> Content:
    """A turn that is a tool call: JSON of one call or a list of them, perhaps behind a thought.

    >>> place = Place("a.jsonl", 1, 1)
    >>> read_call_text('<think>Look.</think>{"name": "f", "arguments": {}}', "turn 2", place)
    Content(text='', reasoning='Look.', calls=[{'name': 'f', 'arguments': {}}])

    Raises:
        RowError: if what follows the thought is not strict JSON.
    """
    content = Content()
    thought = _THOUGHT.match(text)
    if thought is not None:
        content.reasoning = thought.group(2).strip()
        text = text[thought.end() :]
    rest = text.strip()
    while rest:
        try:
            value, end = decode_json(rest)
        except JsonError as error:
            raise row_error(f"the call of {name}: {error.text}", place, error.hint) from error
        content.calls += value if isinstance(value, list) else [value]
        rest = rest[end:].strip()
    if not content.calls:
        raise row_error(f"{name} calls a tool and holds no call", place, 'write {"name": "...", "arguments": {...}}')
    return content
