"""Rows for the table of docs/templates.md: kinds of content x positions, a word of its own in each text."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

TOOL = -1


class Case(NamedTuple):
    """A row, and where each of its words belongs."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    words: list[tuple[str, int]]
    """Word, and the index of its message; TOOL for a word of the tools."""


class Maker:
    """Writes a conversation with words of its own in every text."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.messages: list[dict[str, Any]] = []
        self.words: list[tuple[str, int]] = []
        self.tools: list[dict[str, Any]] | None = None

    def word(self, owner: int | None = None) -> str:
        word = f"Quartz{next(self._numbers)}x"
        self.words.append((word, len(self.messages) if owner is None else owner))
        return word

    def say(self, role: str, **more: Any) -> None:
        message = {"role": role, "content": f"The {self.word()} is here.", **more}
        self.messages.append(message)

    def tool(self) -> None:
        parameter = self.word(TOOL)
        properties = {parameter: {"type": "string", "description": f"A {self.word(TOOL)} of it."}}
        parameters = {"type": "object", "properties": properties, "required": [parameter]}
        function = {"name": self.word(TOOL), "description": f"Finds {self.word(TOOL)}.", "parameters": parameters}
        self.tools = [{"type": "function", "function": function}]

    def call(self, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        name = self.word()
        if arguments is None:
            arguments = {self.word(): f"the {self.word()}"}
        number = next(self._numbers)
        return {"type": "function", "id": f"call{number:05}", "function": {"name": name, "arguments": arguments}}

    def result(self, call: dict[str, Any]) -> None:
        self.say("tool", tool_call_id=call["id"], name=call["function"]["name"])

    def round(self, content: Any = "", num_calls: int = 1, **more: Any) -> None:
        """Calls, with their results."""
        calls = [self.call() for _ in range(num_calls)]
        if content == "words":
            content = f"First {self.word()}."
        self.messages.append({"role": "assistant", "content": content, "tool_calls": calls, **more})
        for call in calls:
            self.result(call)


def _turn(maker: Maker) -> None:
    maker.say("user")
    maker.say("assistant")


def _system(maker: Maker) -> None:
    if not maker.messages:
        maker.say("system")
    _turn(maker)


def _developer(maker: Maker) -> None:
    if not maker.messages:
        maker.say("developer")
    _turn(maker)


def _reasoning(maker: Maker) -> None:
    maker.say("user")
    maker.say("assistant", reasoning_content=f"Because {maker.word()}.")


def _think(maker: Maker) -> None:
    maker.say("user")
    maker.messages.append(
        {"role": "assistant", "content": f"<think>\nBecause {maker.word()}.\n</think>\n\nSo {maker.word()}."}
    )


def _call(maker: Maker, **more: Any) -> None:
    maker.say("user")
    maker.round(**more)
    maker.say("assistant")


def _reasoned_call(maker: Maker) -> None:
    maker.say("user")
    maker.round(reasoning_content=f"Because {maker.word()}.")
    maker.say("assistant")


def _ending_call(maker: Maker) -> None:
    """The call is the last turn, nothing follows it."""
    maker.say("user")
    maker.messages.append({"role": "assistant", "content": "", "tool_calls": [maker.call()]})


def _tools(maker: Maker) -> None:
    if maker.tools is None:
        maker.tool()
    _turn(maker)


def _two_rounds(maker: Maker) -> None:
    maker.say("user")
    maker.round()
    maker.round()
    maker.say("assistant")


def _arguments(maker: Maker) -> None:
    maker.say("user")
    number = 73_000_000 + next(maker._numbers)
    maker.words.append((str(number), len(maker.messages)))
    nested = {"list": [f"a {maker.word()}", number], "inner": {"flag": True, maker.word(): None}}
    call = maker.call({"text": f'"quoted" {maker.word()}\nline', **nested})
    maker.messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    maker.result(call)
    maker.say("assistant")


KINDS = {
    "turns": _turn,
    "system": _system,
    "developer": _developer,
    "reasoning": _reasoning,
    "think": _think,
    "reasoning, call": _reasoned_call,
    "words, call": lambda maker: _call(maker, content="words"),
    "call": _call,
    "call, null": lambda maker: _call(maker, content=None),
    "last call": _ending_call,
    "two calls": lambda maker: _call(maker, num_calls=2),
    "two rounds": _two_rounds,
    "arguments": _arguments,
    "tools": _tools,
}
"""What the exchange holds that is looked at."""

POSITIONS = {"last": (0, 0), "middle": (1, 1), "first": (0, 1)}
"""Exchanges of plain turns before and after it."""


def make_case(kind: str, position: str) -> Case | None:
    """A row; None where the kind has no such position."""
    before, after = POSITIONS[position]
    if kind in ("system", "developer", "tools"):
        before, after = 0, before + after  # these stand at the start
    if kind == "last call" and after:
        return None
    maker = Maker()
    for _ in range(before):
        _turn(maker)
    KINDS[kind](maker)
    for _ in range(after):
        _turn(maker)
    return Case(maker.messages, maker.tools, maker.words)
