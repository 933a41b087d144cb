"""How a chat template prints tool calls, read off what it prints, and answers read back by it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Message
from qlora_cli.data.read.strict_json import JsonError, decode_json
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError
from qlora_cli.serve.decoding import length_of_start
from qlora_cli.serve.http.asked import HERE

ARGUMENT_KEYS = ("arguments", "parameters")
NAME_KEYS = ("name", "function_name")

Call = tuple[str, dict[str, Any]]
"""Name and arguments."""

PROBES: tuple[tuple[Call, ...], ...] = (
    (("look_up", {"city": "Oslo"}),),
    (("add", {"a": 1, "b": -2.5, "is_exact": True, "unit": None}),),
    (("note", {"text": 'quotes " and \\ and\nlines', "of": ["ä", {"deep": []}]}),),
    (("now", {}),),
)
"""Calls that must come back as they were, or the format is not known."""

TWO_CALLS: tuple[Call, ...] = (("look_up", {"city": "Oslo"}), ("look_up", {"city": "Bergen"}))
"""Several calls in one turn, which some templates refuse."""


@dataclass(frozen=True)
class ToolFormat:
    """JSON of each call, or of a list of them, between marks; empty marks where there are none."""

    opening: str
    closing: str

    def may_open(self, text: str) -> int:
        """Where a call may begin in a text that is still growing; its length where none does.

        >>> ToolFormat("<tool_call>", "</tool_call>").may_open("Well: <tool")
        6
        >>> ToolFormat("", "").may_open("Well"), ToolFormat("", "").may_open(' {"na')
        (4, 0)
        """
        if not self.opening:
            return 0 if not text.strip() or text.lstrip()[0] in "{[" else len(text)
        found = text.find(self.opening)
        return found if found >= 0 else len(text) - length_of_start(text, self.opening)

    def read(self, text: str) -> tuple[str, list[Call]] | None:
        """The text before the calls, and the calls; None where an answer holds none, or something follows them.

        >>> ToolFormat("<call>", "</call>").read('Wait. <call>{"name": "f", "arguments": {}}</call>')
        ('Wait.', [('f', {})])
        """
        at = text.find(self.opening)
        if at < 0:
            return None
        rest, calls = text[at:].strip(), list[Call]()
        while rest:
            if not rest.startswith(self.opening) and not (calls and not self.closing):
                return None
            rest = rest.removeprefix(self.opening).lstrip()
            try:
                value, end = decode_json(rest)
            except JsonError:
                return None
            found = _calls_in(value)
            rest = rest[end:].lstrip()
            if found is None or not rest.startswith(self.closing):
                return None
            calls += found
            rest = rest.removeprefix(self.closing).lstrip(" \t\r\n;,")
        return (text[:at].rstrip(), calls) if calls else None


def _calls_in(value: Any) -> list[Call] | None:
    if isinstance(value, list):
        found = [_call(one) for one in value]
        return None if None in found or not found else [one for one in found if one is not None]
    one = _call(value)
    return None if one is None else [one]


def _call(value: Any) -> Call | None:
    """A call in JSON; its function may be in an object of its own, its arguments in a text."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name = next((value[key] for key in NAME_KEYS if key in value), None)
    arguments = next((value[key] for key in ARGUMENT_KEYS if key in value), None)
    if isinstance(arguments, str):
        try:
            arguments, _ = decode_json(arguments)
        except JsonError:
            return None
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def find_tool_format(renderer: Renderer) -> ToolFormat | None:
    """The format in which the template prints calls; None where it prints none, or none that is read back alike.

    What is read is what an engine would give: tokens that training teaches, decoded without special ones.
    """
    first = _printed(renderer, PROBES[0])
    candidate = None if first is None else _marks_in(first)
    if candidate is None:
        return None
    for calls in PROBES:
        text = _printed(renderer, calls)
        if text is None or candidate.read(text) != ("", list(calls)):
            return None
    two = _printed(renderer, TWO_CALLS)
    return None if two is not None and candidate.read(two) != ("", list(TWO_CALLS)) else candidate


def _marks_in(text: str) -> ToolFormat | None:
    """The marks around the JSON in a printed call."""
    for at in (at for at, character in enumerate(text) if character in "[{"):
        try:
            value, end = decode_json(text, at)
        except JsonError:
            continue
        if _calls_in(value) is not None:
            return ToolFormat(text[:at].strip(), text[end:].strip())
    return None


def _printed(renderer: Renderer, calls: tuple[Call, ...]) -> str | None:
    """Text of an assistant's turn that holds calls, as it is taught; None where the template refuses them."""
    given: list[dict[str, Any]] = [
        {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    messages: list[Message] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": given},
    ]
    tools = [_tool(name, arguments) for name, arguments in dict(calls).items()]
    try:
        [row] = renderer.render([Conversation(messages, tools, HERE)])
    except DataError:
        return None
    taught = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORE_INDEX]
    said = list(takewhile(lambda token: token not in renderer.end_of_turn_ids, taught))
    text = str(renderer.tokenizer.decode(said, skip_special_tokens=True)).strip()
    return text.removeprefix(renderer.answer_frame.lead).lstrip()


def _tool(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": key} for key in arguments}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def arguments_text(arguments: dict[str, Any]) -> str:
    """Arguments as JSON text, as OpenAI's API has them."""
    return json.dumps(arguments, ensure_ascii=False)
