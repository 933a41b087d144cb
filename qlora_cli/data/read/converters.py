"""Layouts of a row, and how a row of each becomes an example.

To add one: a function with a worked example, and a line in FORMATS at the end; CONTRIBUTING.md names the other files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qlora_cli.data.example import Conversation, Example, Message, Place, PlainText
from qlora_cli.data.read.content import read_content, read_json_text
from qlora_cli.data.read.error_text import holds_something, kind_of, row_error, shown
from qlora_cli.data.read.messages import OTHER_ROLES, ROLES, check_message, check_messages, check_turns, read_tools
from qlora_cli.data.rejection import RejectionReason

Fields = Mapping[str, Any]
"""Format field -> value of this row; optional fields that the row lacks are absent."""

SHAREGPT_ROLES = (*OTHER_ROLES, *ROLES)
"""Senders of a ShareGPT turn."""


def _text(
    fields: Fields,
    name: str,
    place: Place,
    *,
    may_be_empty: bool = False,
    cause: RejectionReason = RejectionReason.FORMAT,
) -> str:
    value = fields.get(name)
    if value is None and may_be_empty:
        return ""
    if _is_typed(value):
        content = read_content(value, name, place)
        if content.reasoning or content.calls:
            hint = 'write the turn as a message: {"role": "assistant", "content": [...]}'
            raise row_error(f"{name} holds more than text", place, hint)
        value = content.text
    if not isinstance(value, str):
        raise row_error(f"{name} must be a string, found {kind_of(value)}", place)
    if not may_be_empty and not value.strip():
        raise row_error(f"{name} is empty", place, "fill it in or leave the row out", cause)
    return value


def _is_typed(value: Any) -> bool:
    """Whether a value is a list of parts such as `{"type": "text", ...}`, and not one of messages."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(part, dict) and "type" in part and "role" not in part for part in value)


def _system_turn(fields: Fields, place: Place) -> list[Message]:
    system = _text(fields, "system", place, may_be_empty=True)
    return [{"role": "system", "content": system}] if system.strip() else []


def _with_system(fields: Fields, messages: list[Message], place: Place) -> list[Message]:
    """The messages behind the system turn of their row; where they begin with the same one it comes once."""
    before = _system_turn(fields, place)
    if before and messages and messages[0]["role"] == "system":
        if messages[0].get("content") == before[0]["content"]:
            return messages
        text = "the row has a system prompt in its column and another in its first message"
        raise row_error(text, place, "keep one, or name the column in `ignore` of the source")
    return before + messages


def from_alpaca(fields: Fields, place: Place) -> Conversation:
    """Stanford Alpaca: an instruction, perhaps an input it works on, and the output; earlier turns in `history`.

    The user's turn is the two with a blank line between. It also carries them apart, as `instruction` and `input`:
    the Alpaca template gives the input its own heading; other templates read `content` alone.
    """
    instruction = _text(fields, "instruction", place)
    given = _text(fields, "input", place, may_be_empty=True)
    user: Message = {"role": "user", "content": instruction}
    if given.strip():
        user = {"role": "user", "content": f"{instruction}\n\n{given}", "instruction": instruction, "input": given}
    answer = {"role": "assistant", "content": _text(fields, "output", place, cause=RejectionReason.EMPTY_ANSWER)}
    earlier = _earlier_turns(fields.get("history"), place)
    return Conversation([*_with_system(fields, earlier, place), user, answer], None, place)


def _earlier_turns(history: Any, place: Place) -> list[Message]:
    """The turns of a `history` column: pairs of question and answer, or messages."""
    if isinstance(history, str) and history.strip():
        history = read_json_text(history, "history", place)
    if not holds_something(history):
        return []
    if not isinstance(history, list):
        raise row_error(f"history must be a list of [question, answer], found {kind_of(history)}", place)
    if all(isinstance(turn, dict) and "role" in turn for turn in history):
        return check_messages(history, "history", place)
    messages: list[Message] = []
    for number, pair in enumerate(history, start=1):
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        if not is_pair:
            text = f"turn {number} of history must be [question, answer], found {shown(pair)}"
            raise row_error(text, place, 'write [["question", "answer"], ...], or messages with `role` and `content`')
        for role, content in zip(("user", "assistant"), pair, strict=True):
            messages.append(check_message({"role": role, "content": content}, f"turn {number} of history", place))
    return messages


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
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        messages.append(_from_turn(turn, f"turn {number} of conversations", place))
    return _conversation(messages, fields, place)


def _from_turn(turn: Any, name: str, place: Place) -> Message:
    """A turn of `from` and `value` as a message."""
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        hint = "for `role` and `content` set `format: messages` and `columns: {messages: conversations}`"
        raise row_error(f"{name} must have `from` and `value`", place, hint)
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise row_error(
            f"{name} is from the unknown {shown(speaker)}", place, f"known are: {', '.join(SHAREGPT_ROLES)}"
        )
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    message = {**others, "role": speaker, "content": turn["value"]}
    for key, taken in (("role", "from"), ("content", "value")):
        if others.get(key) not in (None, turn[taken], OTHER_ROLES.get(speaker)):
            text = f"{name} has {taken} {shown(turn[taken])} and {key} {shown(others[key])}"
            raise row_error(text, place, f"keep one of the two, `{taken}` or `{key}`")
    return check_message(message, name, place)


def from_prompt_completion(fields: Fields, place: Place) -> Example:
    """A prompt and what follows it: both text, or the prompt a list of messages.

    The completion of messages is messages too, or one of them, or the assistant's words. Assistant turns of the
    prompt are read and not trained, unless they say `train: true`.
    """
    prompt = fields["prompt"]
    if isinstance(prompt, list) and not _is_typed(prompt):
        return _conversation(check_messages(prompt, "prompt", place), fields, place)
    if isinstance(fields["completion"], list) and isinstance(prompt, str) and not _is_typed(fields["completion"]):
        raise row_error(
            "completion must be a string, found a list",
            place,
            "is it the whole conversation? Then set `format: messages` and map its column to `messages`",
        )
    for name in ("system", "tools"):
        if holds_something(fields.get(name)):
            raise row_error(
                f"{name} has no place in a prompt that is plain text",
                place,
                f"write the prompt as a list of messages, or leave the column out with `ignore: [{name}]`",
            )
    before = _text(fields, "prompt", place, may_be_empty=prompt == "")
    return PlainText(before, _text(fields, "completion", place, cause=RejectionReason.EMPTY_ANSWER), place)


def _conversation(messages: list[Message], fields: Fields, place: Place) -> Conversation:
    """The messages behind the system prompt of their row, and before the completion, where there is one."""
    messages = _with_system(fields, messages, place)
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
    return PlainText("", _text(fields, "text", place, cause=RejectionReason.EMPTY_ANSWER), place)


@dataclass(frozen=True)
class Format:
    """One layout of a row."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Fields, Place], Example]
    mapped: tuple[str, ...] = ()
    """Optional fields that are read only where `columns` maps them."""

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """All field names, as `columns` may map them."""
        return self.required + self.optional + self.mapped

    @cached_property
    def unmapped(self) -> tuple[str, ...]:
        """Those that are read under their own names."""
        return self.required + self.optional


FORMATS: dict[str, Format] = {
    "alpaca": Format(("instruction", "output"), ("input", "system", "history"), from_alpaca),
    "messages": Format(("messages",), ("system", "tools"), from_messages, mapped=("completion",)),
    "sharegpt": Format(("conversations",), ("system", "tools"), from_sharegpt, mapped=("completion",)),
    "prompt_completion": Format(("prompt", "completion"), ("system", "tools"), from_prompt_completion),
    "text": Format(("text",), (), from_text),
}
