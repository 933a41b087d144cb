"""Rules of `data.clean` for one row: columns that hold something, answers of some length, no spaces around text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_cli.data.example import Conversation, Example, Message, Place, PlainText, Row
from qlora_cli.data.read.messages import REASONING_FIELDS
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.recipe.data_schema import CleanSection


class Cleaner:
    """Checks and strips rows as a recipe's `data.clean` says; without that section it does nothing."""

    def __init__(self, section: CleanSection | None) -> None:
        section = section or CleanSection()
        self._required = section.required
        self._fewest = section.min_chars
        self._most = section.max_chars
        self._strips = section.strip

    def check_row(self, row: Row, place: Place) -> None:
        """See that each required column holds something.

        Raises:
            RowError: one is missing, null (also not-a-number, which is how tables write it), blank or an empty list.
        """
        for column in self._required:
            fault = _emptiness(row[column]) if column in row else f"is missing; there are: {', '.join(row) or 'none'}"
            if fault:
                raise RowError(RejectionReason.REQUIRED, f"the required column '{column}' {fault}", place=str(place))

    def clean(self, example: Example) -> Example:
        """The row without spaces and line ends around its texts, if the recipe says so.

        Raises:
            RowError: its answer is too short or too long.
        """
        if self._strips:
            example = _stripped(example)
        if self._fewest is not None or self._most is not None:
            self._check_length(len(answer_of(example).strip()), example.place)
        return example

    def _check_length(self, num_chars: int, place: Place) -> None:
        text = f"the answer has {num_chars:,} characters"
        if self._fewest is not None and num_chars < self._fewest:
            raise RowError(RejectionReason.TOO_SHORT, f"{text}, min_chars is {self._fewest:,}", place=str(place))
        if self._most is not None and num_chars > self._most:
            raise RowError(RejectionReason.TOO_MANY_CHARS, f"{text}, max_chars is {self._most:,}", place=str(place))


def answer_of(example: Example) -> str:
    """The text of the last assistant turn, or the completion.

    Of a turn that only calls tools, the calls as JSON; reasoning apart from the text is not part of it.
    """
    if isinstance(example, PlainText):
        return example.completion
    for message in reversed(example.messages):
        if message["role"] == "assistant":
            content = message.get("content")
            if not content and "tool_calls" in message:
                return json.dumps([call["function"] for call in message["tool_calls"]], ensure_ascii=False, default=str)
            return content if isinstance(content, str) else ""
    return ""


def _emptiness(value: Any) -> str:
    """In what way a value holds nothing; empty where it holds something."""
    if value is None or value != value:
        return "is null"
    if isinstance(value, str):
        return "" if value.strip() else "is blank"
    if isinstance(value, list | dict) and not value:
        return "is an empty list" if isinstance(value, list) else "is an empty object"
    return ""


def _stripped(example: Example) -> Example:
    if isinstance(example, Conversation):
        return replace(example, messages=[_stripped_message(message) for message in example.messages])
    # What parts the completion from its prompt may be the prompt's last character or the completion's first.
    if not example.prompt.strip():
        return replace(example, prompt="", completion=example.completion.strip())
    return replace(example, prompt=example.prompt.lstrip(), completion=example.completion.rstrip())


def _stripped_message(message: Message) -> Message:
    keys = [*text_keys(message), *REASONING_FIELDS]
    return with_texts(message, {key: message[key].strip() for key in keys if isinstance(message.get(key), str)})


def text_keys(message: Message) -> tuple[str, ...]:
    """Keys that hold a message's text: of an Alpaca row's question the two parts that its `content` joins."""
    if "input" in message and message.get("content") == joined(message):
        return ("instruction", "input")
    return ("content",)


def with_texts(message: Message, texts: Mapping[str, str]) -> Message:
    """The message with other texts under some keys."""
    changed = {**message, **texts}
    if "content" not in text_keys(message):
        changed["content"] = joined(changed)
    return changed


def joined(message: Message) -> str:
    """The content of an Alpaca row's question, whose parts the message holds too."""
    return f"{message.get('instruction')}\n\n{message['input']}"
