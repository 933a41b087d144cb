"""Checks a list of chat messages and brings it into the one shape that chat templates read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_cli.data.example import Message, Place
from qlora_cli.data.read.content import Content, read_call_text, read_content, read_json_text
from qlora_cli.data.read.error_text import holds_something, kind_of, row_error, shown, without_nulls
from qlora_cli.data.read.message_flags import read_flags
from qlora_cli.data.read.tool_calls import check_tool_calls
from qlora_cli.data.rejection import RejectionReason

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")

CALL = "function_call"
OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    CALL: CALL,
    "tool_call": CALL,
}
"""Role names of ShareGPT files, of OpenAI's older API and of ms-swift -> ours; CALL is an assistant's turn that holds
one tool call or a list of them as JSON."""


def read_tools(value: Any, place: Place) -> list[dict[str, Any]] | None:
    """The `tools` column: a list of JSON schemas, or its JSON text. Keys that are null in a list are padding.

    Raises:
        RowError: anything else.
    """
    if isinstance(value, str) and value.strip():
        value = read_json_text(value, "tools", place)
    elif isinstance(value, list):
        value = without_nulls(value)
    if not holds_something(value):
        return None
    if not isinstance(value, list):
        raise row_error(f"tools must be a list of JSON schemas, found {kind_of(value)}", place)
    for tool in value:
        if not isinstance(tool, dict):
            raise row_error(f"tools must be a list of JSON schemas, found {kind_of(tool)} in it", place)
    return value


def check_messages(value: Any, name: str, place: Place) -> list[Message]:
    """Messages with known roles and text as strings.

    Further keys of a message (`name`, `tool_call_id`, `train`, ...) stay as they are; templates and the mask read
    them. A message that needs no change is handed on, not copied.

    Raises:
        RowError: at the first message that is not one.
    """
    if not isinstance(value, list):
        hint = ""
        if isinstance(value, str):
            hint = "for running text set `format: text` and map its column to `text`"
            if value.lstrip().startswith("["):
                hint = "write the list itself, not its JSON inside a string"
        raise row_error(f"{name} must be a list of messages, found {kind_of(value)}", place, hint)
    if not value:
        raise row_error(f"{name} holds no message", place)
    return [
        message if _is_plain(message) else check_message(message, f"message {number} of {name}", place)
        for number, message in enumerate(value, start=1)
    ]


def check_turns(messages: Sequence[Message], place: Place) -> None:
    """The assistant must answer, and answer last: a turn of another role at the end teaches nothing.

    Raises:
        RowError: no assistant turn, or another role in the last message.
    """
    if messages[-1]["role"] == "assistant":
        return
    if all(message["role"] != "assistant" for message in messages):
        text, hint = "no assistant turn, so there is nothing to learn", "leave the row out"
    else:
        text = f"the last message is from '{messages[-1]['role']}', not from the assistant"
        hint = "end each conversation with the assistant's answer"
    raise row_error(text, place, hint, RejectionReason.NO_ANSWER)


def _is_plain(message: Any) -> bool:
    """A known role and its text, nothing else: most messages. The other checks are for the rest."""
    if type(message) is not dict or len(message) != 2:
        return False
    role, content = message.get("role"), message.get("content")
    return type(content) is str and role in ROLES and (role != "assistant" or not (not content or content.isspace()))


def check_message(message: Any, name: str, place: Place) -> Message:
    """One message, checked as `check_messages` says; `name` is what errors call it.

    Raises:
        RowError: if it is none.
    """
    if not isinstance(message, dict):
        raise row_error(f"{name} must be an object, found {kind_of(message)}", place)
    role = message.get("role")
    checked = {key: value for key, value in message.items() if value is not None}
    if role not in ROLES:
        role = _own_role(message, name, place)
        checked["role"] = role
    content = _content_of(message, role, name, place)
    if role == CALL:
        role = checked["role"] = "assistant"
    read_flags(checked, name, place)
    calls = _calls_of(checked, content, name, place)
    if calls is not None:
        checked["tool_calls"] = check_tool_calls(calls, role, name, place)
    else:
        checked.pop("tool_calls", None)
    for key in REASONING_FIELDS:
        if not isinstance(checked.get(key, ""), str):
            raise row_error(f"{key} of {name} must be a string, found {kind_of(checked[key])}", place)
    if content.reasoning:
        _add_reasoning(checked, content.reasoning, role, name, place)
    if message.get("content") is None or (content.calls and not content.text):
        checked.pop("content", None)
        if not calls:
            what = "has content null" if "content" in message else "has no `content`"
            raise row_error(f"{name} {what}", place, "only a turn with tool_calls goes without content")
        return checked
    checked["content"] = content.text
    is_silent = not content.text.strip() and not calls and not any(map(checked.get, REASONING_FIELDS))
    if role == "assistant" and is_silent:
        raise row_error(
            f"{name}: the assistant's answer is empty", place, "leave the row out", RejectionReason.EMPTY_ANSWER
        )
    return checked


def _own_role(message: Message, name: str, place: Place) -> str:
    """Our word for the role of a message that names it in another tool's."""
    role = message.get("role")
    known = OTHER_ROLES.get(role) if isinstance(role, str) else None
    if known is not None:
        return known
    what = f"has the unknown role {shown(role)}" if "role" in message else "has no `role`"
    hint = f"roles are: {', '.join(ROLES)}"
    if "from" in message and "value" in message:
        hint = "for `from` and `value` set `format: sharegpt` and map the column to `conversations`"
    raise row_error(f"{name} {what}", place, hint)


def _content_of(message: Message, role: str, name: str, place: Place) -> Content:
    value = message.get("content")
    if value is None:
        return Content()
    if role != CALL:
        return read_content(value, f"content of {name}", place)
    if isinstance(value, str):
        return read_call_text(value, name, place)
    is_typed = isinstance(value, list) and any(isinstance(part, dict) and "type" in part for part in value)
    if not is_typed:
        return Content(calls=value if isinstance(value, list) else [value])
    content = read_content(value, f"content of {name}", place)
    if content.calls:
        return content
    read = read_call_text(content.text, name, place)
    return Content("", content.reasoning + read.reasoning, read.calls)


def _calls_of(message: Message, content: Content, name: str, place: Place) -> Any:
    """The calls of a message, from the one place of it that holds any; OpenAI's older `function_call` is taken out."""
    legacy = message.pop("function_call", None)
    places = (message.get("tool_calls"), [legacy] if holds_something(legacy) else None, content.calls)
    found = [calls for calls in places if holds_something(calls)]
    if len(found) > 1:
        raise row_error(f"{name} holds tool calls in two places", place, "keep `tool_calls` and take the others out")
    return found[0] if found else None


def _add_reasoning(message: Message, reasoning: str, role: str, name: str, place: Place) -> None:
    if role != "assistant":
        raise row_error(f"{name}: only the assistant reasons, not '{role}'", place)
    if any(message.get(key) for key in REASONING_FIELDS):
        raise row_error(f"{name} holds reasoning in two places", place, "keep `reasoning_content` alone")
    message["reasoning_content"] = reasoning
