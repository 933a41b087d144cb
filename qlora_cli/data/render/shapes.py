"""The shapes in which a conversation may be handed to a template: templates differ in which of them they take.

    arguments of a call   {"city": "Bonn"}                          '{"city": "Bonn"}'
    a tool                {"type": "function", "function": {...}}   {...}
    a call without words  no content    content none    content ''

The first shape is the one that `apply_chat_template` documents: an object, and the tool as the row has it. Another one
is tried only where the template fails over it, or leaves the call or the tool out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from qlora_cli.data.example import Message
from qlora_cli.data.render.generation_prompt import Tools
from qlora_cli.errors import DataError

Wordless = Literal["as given", "none", "absent", "empty"]


@dataclass(frozen=True)
class Shape:
    """One way to hand over calls and tools."""

    arguments_as_text: bool = False
    tools_turned: bool = False
    """Wrapped tools bare, and bare ones wrapped."""

    wordless: Wordless = "as given"
    """The content of calls that hold no words."""

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in this shape; those without calls stay as they are."""
        if not (self.arguments_as_text or self.wordless != "as given"):
            return list(messages)
        return [self._message(message) if "tool_calls" in message else message for message in messages]

    def tools(self, tools: Tools) -> Tools:
        """The tools in this shape."""
        return [_turned(tool) for tool in tools] if tools and self.tools_turned else tools

    def _message(self, message: Message) -> Message:
        shaped = dict(message)
        if self.arguments_as_text:
            shaped["tool_calls"] = [_with_text(call) for call in message["tool_calls"]]
        if self.wordless != "as given" and is_wordless(message):
            shaped.pop("content", None)
            if self.wordless != "absent":
                shaped["content"] = None if self.wordless == "none" else ""
        return shaped


AS_GIVEN = Shape()


def shapes_to_try(messages: Sequence[Message], tools: Tools, first: Shape = AS_GIVEN) -> Iterator[Shape]:
    """The shapes that differ for this conversation, those nearest to the first one first."""
    yield first
    calling = [message for message in messages if "tool_calls" in message]
    texts = (first.arguments_as_text, not first.arguments_as_text) if calling else (first.arguments_as_text,)
    turned = (False, True) if tools else (False,)
    wordless: tuple[Wordless, ...] = ("as given",)
    if any(map(is_wordless, calling)):
        wordless = ("as given", "none", "absent", "empty")
    shapes = [Shape(*choice) for choice in product(texts, turned, wordless)]
    yield from sorted((shape for shape in shapes if shape != first), key=lambda shape: _distance(shape, first))


def _distance(shape: Shape, other: Shape) -> int:
    pairs = zip(vars(shape).values(), vars(other).values(), strict=True)
    return sum(one != two for one, two in pairs)


def is_wordless(message: Message) -> bool:
    """Whether a call comes without words."""
    content = message.get("content")
    return not content or (isinstance(content, str) and content.isspace())


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if not isinstance(arguments, Mapping):
        return call
    written = {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {**call, "function": written} if "function" in call else written


def _turned(tool: dict[str, Any]) -> dict[str, Any]:
    """
    >>> _turned({"name": "f"}), _turned({"type": "function", "function": {"name": "f"}})
    ({'type': 'function', 'function': {'name': 'f'}}, {'name': 'f'})
    """
    inner = tool.get("function")
    return dict(inner) if isinstance(inner, Mapping) else {"type": "function", "function": tool}


def first_shape(plain: Callable[[list[Message], Tools], str]) -> Shape:
    """The shape to try first: arguments as text, where an object is printed as Python writes it and text as JSON is.

    Args:
        plain: renders a conversation; what the template refuses is a DataError.
    """
    as_python, as_json = (_printed_call(plain, shape) for shape in (AS_GIVEN, Shape(arguments_as_text=True)))
    is_python = "{'probe': 'value'}" in as_python and '{"probe": "value"}' in as_json
    return Shape(arguments_as_text=True) if is_python else AS_GIVEN


def _printed_call(plain: Callable[[list[Message], Tools], str], shape: Shape) -> str:
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "probe", "arguments": {"probe": "value"}}}
    messages: list[Message] = [
        {"role": "user", "content": "Probe."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        return plain(shape.messages(messages), None)
    except DataError:
        return ""
