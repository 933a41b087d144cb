"""How a row of each layout becomes an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_cli.data.causes import Cause
from qlora_cli.data.example import Conversation, Example, Message, Place, PlainText
from qlora_cli.data.read.messages import (
    check_message,
    check_messages,
    check_turns,
    read_json_text,
    read_tools,
    row_error,
)
from qlora_cli.data.read.values import kind_of, shown

Fields = Mapping[str, Any]
"""Format field -> value of this row; optional fields that the row lacks are absent."""

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "function_call",
}
"""Role names seen in ShareGPT-style data -> ours; `function_call` is an assistant turn that holds a call as JSON."""


def _text(fields: Fields, name: str, place: Place, *, may_be_empty: bool = False, cause: Cause = Cause.FORMAT) -> str:
    value = fields.get(name)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise row_error(f"{name} must be a string, found {kind_of(value)}", place)
    if not may_be_empty and not value.strip():
        raise row_error(f"{name} is empty", place, "fill it in or leave the row out", cause)
    return value


def _system_turn(fields: Fields, place: Place) -> list[Message]:
    system = _text(fields, "system", place, may_be_empty=True)
    return [{"role": "system", "content": system}] if system.strip() else []


def from_alpaca(fields: Fields, place: Place) -> Conversation:
    """Stanford Alpaca: an instruction, perhaps an input it works on, and the output.

    The user's turn is the two with a blank line between. It also carries them apart, as `instruction` and `input`:
    the Alpaca template gives the input its own heading; other templates read `content` alone.
    """
    instruction = _text(fields, "instruction", place)
    given = _text(fields, "input", place, may_be_empty=True)
    user: Message = {"role": "user", "content": instruction}
    if given.strip():
        user = {"role": "user", "content": f"{instruction}\n\n{given}", "instruction": instruction, "input": given}
    answer = {"role": "assistant", "content": _text(fields, "output", place, cause=Cause.EMPTY_ANSWER)}
    return Conversation([*_system_turn(fields, place), user, answer], None, place)


def from_messages(fields: Fields, place: Place) -> Conversation:
    """Chat messages with `role` and `content`, as the OpenAI API and `apply_chat_template` take them."""
    return _conversation(check_messages(fields["messages"], "messages", place), fields, place)


def from_sharegpt(fields: Fields, place: Place) -> Conversation:
    """ShareGPT: turns of `from` and `value`, with its many role names."""
    turns = fields["conversations"]
    if not isinstance(turns, list):
        raise row_error(f"conversations must be a list of turns, found {kind_of(turns)}", place)
    if not turns:
        raise row_error("conversations holds no turn", place)
    messages = _system_turn(fields, place)
    for number, turn in enumerate(turns, start=1):
        messages.append(_from_turn(turn, f"turn {number} of conversations", place))
    return _conversation(messages, fields, place)


def _from_turn(turn: Any, name: str, place: Place) -> Message:
    """A turn of `from` and `value` as a message."""
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        hint = "for `role` and `content` set `format: messages` and `columns: {messages: conversations}`"
        raise row_error(f"{name} must have `from` and `value`", place, hint)
    speaker, value = turn["from"], turn["value"]
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise row_error(
            f"{name} is from the unknown {shown(speaker)}", place, f"known are: {', '.join(SHAREGPT_ROLES)}"
        )
    message: Message = {"role": role, "content": value}
    if role == "function_call":
        call = read_json_text(value, f"the call of {name}", place) if isinstance(value, str) else value
        message = {"role": "assistant", "content": None, "tool_calls": call if isinstance(call, list) else [call]}
    message.update((key, turn[key]) for key in ("train", "weight") if key in turn)
    return check_message(message, name, place)


def from_prompt_completion(fields: Fields, place: Place) -> Example:
    """A prompt and what follows it: both text, or the prompt a list of messages.

    The completion of messages is messages too, or one of them, or the assistant's words. Assistant turns of the
    prompt are read and not trained, unless they say `train: true`.
    """
    prompt = fields["prompt"]
    if isinstance(prompt, list):
        return _conversation(check_messages(prompt, "prompt", place), fields, place)
    if isinstance(fields["completion"], list) and isinstance(prompt, str):
        raise row_error(
            "completion must be a string, found a list",
            place,
            "is it the whole conversation? Then set `format: messages` and map its column to `messages`",
        )
    before = _text(fields, "prompt", place, may_be_empty=prompt == "")
    return PlainText(before, _text(fields, "completion", place, cause=Cause.EMPTY_ANSWER), place)


def _conversation(messages: list[Message], fields: Fields, place: Place) -> Conversation:
    """The messages, and behind them the completion where there is one."""
    if "completion" in fields:
        completion = _completion(fields["completion"], place)
        if completion[0].get("content") == messages[0].get("content") and completion[0]["role"] == messages[0]["role"]:
            raise row_error(
                "the completion starts with the first message of the prompt again",
                place,
                "is it the whole conversation? Then set `format: messages` and map its column to `messages`",
            )
        messages = [_as_context(message) for message in messages] + completion
    check_turns(messages, place)
    return Conversation(messages, read_tools(fields.get("tools"), place), place)


def _completion(value: Any, place: Place) -> list[Message]:
    """The turns that answer a prompt of messages."""
    if isinstance(value, str):
        return [check_message({"role": "assistant", "content": value}, "completion", place)]
    turns = value if isinstance(value, list) else [value]
    if any(isinstance(turn, dict) and "from" in turn for turn in turns):
        return [_from_turn(turn, f"turn {number} of completion", place) for number, turn in enumerate(turns, start=1)]
    return check_messages(turns, "completion", place)


def _as_context(message: Message) -> Message:
    if message["role"] != "assistant" or "train" in message or "weight" in message:
        return message
    return {**message, "train": False}


def from_text(fields: Fields, place: Place) -> PlainText:
    """Running text, trained in full."""
    return PlainText("", _text(fields, "text", place, cause=Cause.EMPTY_ANSWER), place)
