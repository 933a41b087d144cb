"""Checks a list of chat messages and brings it into the one shape that chat templates read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qlora_cli.data.causes import Cause, RowError
from qlora_cli.data.example import Message, Place
from qlora_cli.data.read.strict_json import JsonError, load_json
from qlora_cli.data.read.values import kind_of, shown

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


def row_error(text: str, place: Place, hint: str = "", cause: Cause = Cause.FORMAT) -> RowError:
    """The error for a row that does not fit its format."""
    return RowError(cause, text, place=str(place), hint=hint)


def text_of(content: Any, name: str, place: Place) -> str:
    """A string, or the joined text of parts such as `[{"type": "text", "text": "Hi"}]`.

    Raises:
        RowError: another type, or a part that is not text.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise row_error(f"{name} must be a string, found {kind_of(content)}", place)
    texts = []
    for number, part in enumerate(content, start=1):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            is_other = isinstance(part, dict) and part.get("type", "text") != "text"
            seen = f"type {shown(part['type'])}" if is_other else kind_of(text)
            raise row_error(
                f"part {number} of {name} is not text but {seen}",
                place,
                'only text is trained: {"type": "text", "text": "..."}',
            )
        texts.append(text)
    return "".join(texts)


def read_tools(value: Any, place: Place) -> list[dict[str, Any]] | None:
    """The `tools` column: a list of JSON schemas, or its JSON text.

    Raises:
        RowError: anything else.
    """
    if isinstance(value, str) and value.strip():
        value = read_json_text(value, "tools", place)
    if not value:
        return None
    if not isinstance(value, list):
        raise row_error(f"tools must be a list of JSON schemas, found {kind_of(value)}", place)
    for tool in value:
        if not isinstance(tool, dict):
            raise row_error(f"tools must be a list of JSON schemas, found {kind_of(tool)} in it", place)
    return value


def read_json_text(text: str, name: str, place: Place) -> Any:
    """The value of JSON that stands inside a string.

    Raises:
        RowError: if it is no strict JSON.
    """
    try:
        return load_json(text)
    except JsonError as error:
        raise row_error(f"{name}: {error.text}", place, error.hint) from error


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
    """The assistant must speak, and speak last: a turn of someone else at the end teaches nothing.

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
    raise row_error(text, place, hint, Cause.NO_ANSWER)


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
    if role not in ROLES:
        what = f"has the unknown role {shown(role)}" if "role" in message else "has no `role`"
        hint = f"roles are: {', '.join(ROLES)}"
        if "from" in message and "value" in message:
            hint = "for `from` and `value` set `format: sharegpt` and map the column to `conversations`"
        raise row_error(f"{name} {what}", place, hint)
    checked = dict(message)
    _check_training(checked, name, place)
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
        raise row_error(f"{name} {what}", place, "only a turn with tool_calls goes without content")
    checked["content"] = text_of(content, f"content of {name}", place)
    is_silent = not checked["content"].strip() and not calls and not any(map(message.get, REASONING_FIELDS))
    if role == "assistant" and is_silent:
        raise row_error(f"{name}: the assistant's answer is empty", place, "leave the row out", Cause.EMPTY_ANSWER)
    return checked


def _check_training(message: Message, name: str, place: Place) -> None:
    """`train` and `weight` of a message: both say whether it is trained; null says nothing and is taken out."""
    said: dict[str, bool] = {}
    for key, allowed in (("train", "true or false"), ("weight", "0 or 1")):
        value = message.get(key)
        if value is None:
            message.pop(key, None)
            continue
        if isinstance(value, bool) != (key == "train") or value not in (0, 1):
            raise row_error(f"{key} of {name} must be {allowed}, found {shown(value)}", place)
        said[key] = bool(value)
    if len(set(said.values())) > 1:
        raise row_error(
            f"{name} has train {str(message['train']).lower()} and weight {message['weight']}, which contradict",
            place,
            "leave one of them out",
        )
    if message["role"] != "assistant" and True in said.values():
        key = next(iter(said))
        raise row_error(
            f"{name} is from '{message['role']}' and has {key} {str(message[key]).lower()}: only the assistant's "
            "turns are trained",
            place,
            f"leave `{key}` out, or set `data.train_on: all` to train everything",
        )


def _check_tool_calls(calls: Any, role: str, name: str, place: Place) -> list[dict[str, Any]]:
    """Calls as `{"type": "function", "function": {"name": ..., "arguments": ...}}`, arguments given as JSON text
    read into an object, as chat templates expect them."""
    if role != "assistant":
        raise row_error(f"{name}: only the assistant calls tools, not '{role}'", place)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise row_error(f"tool_calls of {name} must be a list of objects", place)
    checked = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise row_error(
                f"a tool call in {name} has no function name",
                place,
                'write {"type": "function", "function": {"name": "...", "arguments": {...}}}',
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = read_json_text(arguments, f"arguments of a tool call in {name}", place)
        if not isinstance(arguments, dict):
            raise row_error(f"arguments of a tool call in {name} must be an object, found {kind_of(arguments)}", place)
        extra = {key: item for key, item in call.items() if key not in ("function", "name", "arguments")}
        checked.append({"type": "function", **extra, "function": {**function, "arguments": arguments}})
    return checked
