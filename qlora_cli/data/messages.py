"""Checks a list of chat messages and brings it into the one shape that chat templates read."""

from __future__ import annotations

import json
from typing import Any

from qlora_cli.data.example import Message, Place
from qlora_cli.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


def kind_of(value: Any) -> str:
    """The JSON name of the value's type, for error texts.

    >>> kind_of(None), kind_of([1]), kind_of(2.5)
    ('null', 'a list', 'a number')
    """
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def text_of(content: Any, name: str, place: Place) -> str:
    """A string, or the joined text of parts such as `[{"type": "text", "text": "Hi"}]`.

    Raises:
        DataError: another type, or a part that is not text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{name} must be a string, found {kind_of(content)}", place=str(place))
    texts = []
    for number, part in enumerate(content, start=1):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            seen = f"type {part['type']!r}" if isinstance(part, dict) and "type" in part else kind_of(part)
            raise DataError(
                f"part {number} of {name} is not text but {seen}",
                place=str(place),
                hint='only text is trained: {"type": "text", "text": "..."}',
            )
        texts.append(text)
    return "".join(texts)


def read_tools(value: Any, place: Place) -> list[dict[str, Any]] | None:
    """The `tools` column: a list of JSON schemas, or its JSON text.

    Raises:
        DataError: anything else.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"tools is a string that is no JSON: {error}", place=str(place)) from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"tools must be a list of JSON schemas, found {kind_of(value)}", place=str(place))
    return value


def check_messages(value: Any, name: str, place: Place) -> list[Message]:
    """Messages with known roles and text as strings, ending with the assistant.

    Further keys of a message (`name`, `tool_call_id`, ...) stay as they are; templates read them.

    Raises:
        DataError: at the first message that is not one, or when nobody is there to learn from.
    """
    if not isinstance(value, list):
        raise DataError(f"{name} must be a list of messages, found {kind_of(value)}", place=str(place))
    if not value:
        raise DataError(f"{name} holds no message", place=str(place))
    return [
        _check_message(message, f"message {number} of {name}", place) for number, message in enumerate(value, start=1)
    ]


def check_turns(messages: list[Message], place: Place) -> None:
    """The assistant must speak, and speak last: a turn of someone else at the end teaches nothing.

    Raises:
        DataError: no assistant turn, or another role in the last message.
    """
    if all(message["role"] != "assistant" for message in messages):
        raise DataError("no assistant turn, so there is nothing to learn", place=str(place), hint="leave the row out")
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"the last message is from '{messages[-1]['role']}', not from the assistant",
            place=str(place),
            hint="end each conversation with the assistant's answer",
        )


def _check_message(message: Any, name: str, place: Place) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{name} must be an object, found {kind_of(message)}", place=str(place))
    role = message.get("role")
    if role not in ROLES:
        what = f"has the unknown role {role!r}" if "role" in message else "has no `role`"
        raise DataError(f"{name} {what}", place=str(place), hint=f"roles are: {', '.join(ROLES)}")
    checked = dict(message)
    calls = message.get("tool_calls")
    if calls:
        checked["tool_calls"] = _check_tool_calls(calls, role, name, place)
    else:
        checked.pop("tool_calls", None)
    content = message.get("content")
    if content is None and calls:
        checked.pop("content", None)
        return checked
    if content is None:
        what = "has content null" if "content" in message else "has no `content`"
        raise DataError(f"{name} {what}", place=str(place), hint="only a turn with tool_calls goes without content")
    checked["content"] = text_of(content, f"content of {name}", place)
    is_silent = not checked["content"].strip() and not calls and not any(map(message.get, REASONING_FIELDS))
    if role == "assistant" and is_silent:
        raise DataError(f"{name}: the assistant's answer is empty", place=str(place), hint="leave the row out")
    return checked


def _check_tool_calls(calls: Any, role: str, name: str, place: Place) -> list[dict[str, Any]]:
    """Calls as `{"type": "function", "function": {"name": ..., "arguments": ...}}`, arguments given as JSON text
    read into an object, as chat templates expect them."""
    if role != "assistant":
        raise DataError(f"{name}: only the assistant calls tools, not '{role}'", place=str(place))
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise DataError(f"tool_calls of {name} must be a list of objects", place=str(place))
    checked = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f"a tool call in {name} has no function name",
                place=str(place),
                hint='write {"type": "function", "function": {"name": "...", "arguments": {...}}}',
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as error:
                raise DataError(f"arguments of a tool call in {name} are no JSON: {error}", place=str(place)) from error
        if not isinstance(arguments, dict):
            raise DataError(
                f"arguments of a tool call in {name} must be an object, found {kind_of(arguments)}", place=str(place)
            )
        extra = {key: item for key, item in call.items() if key not in ("function", "name", "arguments")}
        checked.append({"type": "function", **extra, "function": {**function, "arguments": arguments}})
    return checked
