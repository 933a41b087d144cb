"""The texts of a conversation that its rendering must hold, each with a mark that shows where the template prints it.

A mark is a number between two rare characters, put around a text in a copy of the conversation. Marks stand inside the
spaces at a text's ends, and never inside or across a word that the template looks for, so that it does the same with
the copy; that it did is checked afterwards (`placement.py`). A number that is not text is exchanged for a rare one.

    content           <think>\\nhm\\n</think>\\n\\nYes
    marked            <think>\\n(0(hm)0)\\n</think>\\n\\n(1(Yes)1)
    arguments         {"city": "Bonn", "days": 3}
    marked            {"city)2)": "(3(Bonn)3)", "days)4)": 7310000000005}

Names of arguments and parameters get a mark behind them only, the same for equal names: templates sort them and look
them up in the schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from qlora_cli.data.clean import joined
from qlora_cli.data.example import Message
from qlora_cli.data.read.messages import REASONING_FIELDS
from qlora_cli.data.render.generation_prompt import Tools
from qlora_cli.errors import DataError

TOOLS = -1
"""Stands for the owner of a text that belongs to the tools."""

FIRST_NUMBER = 7_310_000_000_000
"""Numbers of a conversation are exchanged for this one and those after it."""

# Hexagrams and Braille: printable, so that Python's repr leaves them as they are, caseless, and in no template.
_MARK_CHARACTERS = [chr(code) for code in (*range(0x4DC0, 0x4E00), *range(0x2801, 0x2900))]
_MIN_WORD = 2  # a shorter word that the template looks for, such as "{", would cut every text to pieces
_UNMARKED_KEYS = frozenset({"type", "$ref", "id"})  # of schemas: words that templates compare and change the case of


class LeafKind(StrEnum):
    """Kind of a text; the value is its name in findings."""

    CONTENT = "content"
    REASONING = "reasoning"
    CALL = "tool call"
    ARGUMENT = "argument of a tool call"
    TOOL = "tool"
    SCHEMA = "part of a tool's schema"


class Leaf(NamedTuple):
    """One text, or number, of a conversation."""

    owner: int
    """Index of its message, or TOOLS."""

    kind: LeafKind
    name: str
    """Description, e.g. "`reasoning_content`" or "argument `city` of the call `weather`"."""

    text: str
    """As it is looked for: without spaces around it, numbers as they are printed."""

    mark: int | None
    """Number of its mark; None for a value that can carry none, such as true or null."""

    is_key: bool = False
    """Whether it has a mark behind it only, which all keys of that name share."""

    key_mark: int | None = None
    """Of a value without a mark: that of its key."""


class Marks(NamedTuple):
    """Two characters that do not occur in a conversation."""

    opening: str
    closing: str

    @classmethod
    def absent_from(cls, text: str) -> Marks:
        """
        Raises:
            DataError: if the text holds nearly all of the characters that could be taken.
        """
        absent = [character for character in _MARK_CHARACTERS if character not in text]
        if len(absent) < len(cls._fields):
            raise DataError("the row holds every character that its texts could be marked with")
        return cls(*absent[: len(cls._fields)])


def markup_pattern(words: Collection[str]) -> re.Pattern[str] | None:
    """Splits a text at the words that a template looks for.

    >>> markup_pattern(["<think>", "{"]).split("<think>a</think>")
    ['', '<think>', 'a</think>']
    """
    long = sorted((word for word in words if len(word) >= _MIN_WORD), key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, long)) + ")") if long else None


class Marker:
    """Makes the marked copy of one conversation, and the list of its texts."""

    def __init__(self, marks: Marks, markup: re.Pattern[str] | None, only: Collection[int] | None = None) -> None:
        """
        Args:
            marks: characters that the conversation does not hold.
            markup: words that the template looks for.
            only: numbers of the marks that are made; all of them by default.
        """
        self._marks = marks
        self._markup = markup
        self._only = only
        self._mark_of_key: dict[str, int] = {}
        self._num_marks = 0
        self.leaves: list[Leaf] = []

    def mark(self, messages: Sequence[Message], tools: Tools) -> tuple[list[Message], Tools]:
        """The marked copy; `leaves` holds what was found."""
        marked_tools = None if tools is None else [self._tool(tool) for tool in tools]
        return [self._message(message, index) for index, message in enumerate(messages)], marked_tools

    def _message(self, message: Message, index: int) -> Message:
        if "input" in message and message.get("content") == joined(message):
            return self._question_in_two(message, index)
        marked = dict(message)
        reasonings: dict[str, str] = {}  # one text under several names is one leaf
        for key, value in message.items():
            if key == "content":
                marked[key] = self._content(value, index)
            elif key in REASONING_FIELDS and isinstance(value, str):
                if value not in reasonings:
                    reasonings[value] = self._text(value, index, LeafKind.REASONING, f"`{key}`")
                marked[key] = reasonings[value]
            elif key == "tool_calls" and isinstance(value, list):
                names = _call_names(value)
                marked[key] = [self._call(call, index, of) for call, of in zip(value, names, strict=True)]
        return marked

    def _question_in_two(self, message: Message, index: int) -> Message:
        """An Alpaca row's question, which templates print in its parts or as the content that joins them."""
        parts = {
            key: self._text(message[key], index, LeafKind.CONTENT, f"the {key}") for key in ("instruction", "input")
        }
        return {**message, **parts, "content": joined(parts)}

    def _content(self, content: Any, index: int) -> Any:
        if isinstance(content, list):
            return [
                {**part, "text": self._content(part["text"], index)} if "text" in part else part for part in content
            ]
        if not isinstance(content, str):
            return content
        pieces = self._markup.split(content) if self._markup else [content]
        is_whole = len(pieces) == 1
        return "".join(
            piece if at % 2 else self._text(piece, index, LeafKind.CONTENT, _content_name(piece, is_whole=is_whole))
            for at, piece in enumerate(pieces)
        )

    def _call(self, call: dict[str, Any], index: int, of: str) -> dict[str, Any]:
        function = call.get("function", call)
        name, arguments = function.get("name"), function.get("arguments")
        marked = {**function, "name": self._text(name, index, LeafKind.CALL, of)}
        if isinstance(arguments, Mapping):
            marked["arguments"] = self._value(arguments, index, of, None)
        elif isinstance(arguments, str):
            marked["arguments"] = self._text(arguments, index, LeafKind.ARGUMENT, f"arguments of {of}")
        return {**call, "function": marked} if "function" in call else marked

    def _tool(self, tool: dict[str, Any]) -> dict[str, Any]:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping):
            return tool
        of = f"the tool `{function.get('name')}`"
        marked: dict[str, Any] = {}
        for key, value in function.items():
            if key == "name" and isinstance(value, str):
                marked[key] = self._text(value, TOOLS, LeafKind.TOOL, of)
            else:
                marked[key] = self._schema(value, key, f"`{key}` of {of}")
        return {**tool, "function": marked} if "function" in tool else marked

    def _schema(self, value: Any, key: str, name: str) -> Any:
        """A part of a JSON schema; the keys of `properties` are names, all other keys are the schema's own words."""
        if isinstance(value, Mapping):
            if key == "properties":
                return {
                    self._key(inner, TOOLS, LeafKind.SCHEMA, f"parameter `{inner}`, {name}"): self._schema(
                        item, "", f"parameter `{inner}`, {name}"
                    )
                    for inner, item in value.items()
                }
            return {inner: self._schema(item, inner, f"`{inner}`, {name}") for inner, item in value.items()}
        if isinstance(value, list):
            if key == "required":
                return [self._key(item, TOOLS, LeafKind.SCHEMA, name) for item in value]
            return [self._schema(item, key, name) for item in value]
        if key in _UNMARKED_KEYS or value is None or isinstance(value, bool):
            return value
        return self._scalar(value, TOOLS, LeafKind.SCHEMA, name, None)

    def _value(self, value: Any, owner: int, name: str, key_mark: int | None) -> Any:
        """Value in a call's arguments, behind the key with that mark."""
        if isinstance(value, Mapping):
            marked = {}
            for key, item in value.items():
                of = f"argument `{key}` of {name.removeprefix('argument ')}"
                marked_key = self._key(key, owner, LeafKind.ARGUMENT, of)
                marked[marked_key] = self._value(item, owner, of, self._mark_of_key.get(key))
            return marked
        if isinstance(value, list):
            return [self._value(item, owner, name, key_mark) for item in value]
        return self._scalar(value, owner, LeafKind.ARGUMENT, name, key_mark)

    def _scalar(self, value: Any, owner: int, kind: LeafKind, name: str, key_mark: int | None) -> Any:
        if isinstance(value, str):
            return self._text(value, owner, kind, name)
        if value is None or isinstance(value, bool):
            self.leaves.append(Leaf(owner, kind, name, str(value), None, key_mark=key_mark))
            return value
        if not isinstance(value, int | float) or not math.isfinite(value):
            return value
        number = self._new_mark()
        self.leaves.append(Leaf(owner, kind, name, str(value), number))
        return value if self._is_left_out(number) else type(value)(FIRST_NUMBER + number)

    def _key(self, key: Any, owner: int, kind: LeafKind, name: str) -> Any:
        """The name of an argument or parameter with the mark that all equal names have."""
        if not isinstance(key, str) or not key.strip():
            return key
        is_new = key not in self._mark_of_key
        number = self._mark_of_key.setdefault(key, self._num_marks)
        self._num_marks += is_new
        if is_new or owner != TOOLS:
            self.leaves.append(Leaf(owner, kind, name, key.strip(), number, is_key=True))
        if self._is_left_out(number):
            return key
        return f"{key}{self._marks.closing}{number}{self._marks.closing}"

    def _text(self, text: str, owner: int, kind: LeafKind, name: str) -> str:
        core = text.strip()
        if not core:
            return text
        number = self._new_mark()
        self.leaves.append(Leaf(owner, kind, name, core, number))
        if self._is_left_out(number):
            return text
        at = text.index(core)
        opening, closing = (f"{mark}{number}{mark}" for mark in self._marks)
        return f"{text[:at]}{opening}{core}{closing}{text[at + len(core) :]}"

    def _new_mark(self) -> int:
        self._num_marks += 1
        return self._num_marks - 1

    def _is_left_out(self, number: int) -> bool:
        return self._only is not None and number not in self._only


def _call_names(calls: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the calls in errors.

    >>> _call_names([{"function": {"name": "f"}}, {"name": "f"}])
    ['call 1 (`f`)', 'call 2 (`f`)']
    """
    names = [call.get("function", call).get("name") for call in calls]
    if len(names) == 1:
        return [f"the call `{names[0]}`"]
    return [f"call {number} (`{name}`)" for number, name in enumerate(names, start=1)]


def _content_name(piece: str, *, is_whole: bool) -> str:
    if is_whole:
        return "the content"
    shown = " ".join(piece.split())
    return f"{shown[:30] + ('...' if len(shown) > 30 else '')!r} of the content"
