"""Tool calls of an assistant's turn, in the one shape that chat templates read."""

from __future__ import annotations

from typing import Any

from qlora_cli.data.example import Place
from qlora_cli.data.read.content import CALL_PARTS, read_json_text
from qlora_cli.data.read.error_text import kind_of, row_error, without_nulls

ARGUMENT_KEYS = ("arguments", "parameters", "input")
"""Keys of a call's arguments: OpenAI and most others, Llama 3, Anthropic."""

AROUND_A_CALL = ("id", "index")
"""Keys of a call that say which one it is, and not what it does."""


def check_tool_calls(calls: Any, role: str, name: str, place: Place) -> list[dict[str, Any]]:
    """Calls as `{"type": "function", "function": {"name": ..., "arguments": {...}}}`.

    Arguments given as JSON text are read into an object, as chat templates expect them. Keys that are null in an object
    are the padding of a file with one schema, and are taken out.

    Args:
        calls: as the row has them.
        role: of the message.
        name: of the message, for errors.
        place: of its row.

    Raises:
        RowError: calls of another role, without a name, or whose arguments are not an object.
    """
    if role != "assistant":
        raise row_error(f"{name}: only the assistant calls tools, not '{role}'", place)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise row_error(f"tool_calls of {name} must be a list of objects", place)
    return [_check_call(call, name, place) for call in calls]


def _check_call(call: dict[str, Any], name: str, place: Place) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise row_error(
            f"a tool call in {name} has no function name",
            place,
            'write {"type": "function", "function": {"name": "...", "arguments": {...}}}',
        )
    key, arguments = _arguments(function) or _arguments(call) or ("arguments", {})
    if isinstance(arguments, str):
        arguments = read_json_text(arguments, f"arguments of a tool call in {name}", place)
        if isinstance(arguments, str):  # encoded twice, as some exports of the OpenAI API are
            arguments = read_json_text(arguments, f"arguments of a tool call in {name}", place)
    else:
        arguments = without_nulls(arguments)
    if not isinstance(arguments, dict):
        raise row_error(f"arguments of a tool call in {name} must be an object, found {kind_of(arguments)}", place)
    is_bare = function is call
    around = {item: value for item, value in call.items() if value is not None and item in (*AROUND_A_CALL, "type")}
    if not is_bare:
        around = {item: value for item, value in call.items() if value is not None and item not in ("function", key)}
    inside = {
        item: value
        for item, value in function.items()
        if value is not None and item not in ("name", key, *(around if is_bare else ()))
    }
    if around.get("type") in CALL_PARTS:
        del around["type"]
    return {"type": "function", **around, "function": {"name": function["name"], **inside, "arguments": arguments}}


def _arguments(holder: dict[str, Any]) -> tuple[str, Any] | None:
    return next(((key, holder[key]) for key in ARGUMENT_KEYS if holder.get(key) is not None), None)
