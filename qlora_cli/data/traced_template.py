"""Which characters of a rendered chat each message made, found in the template itself.

A chat template is a Jinja program that loops over the messages. Its parsed tree is changed in one way: every loop
body begins with a call that prints a private mark when the loop stands at a message, and a mark follows the loop.
The changed program is rendered once; the marks are cut out and where they stood bounds each message's text. No
template's words are guessed. `{% generation %}` blocks, where a template has them, are marked in the same way.

    {% for message in messages %}<|im_start|>...<|im_end|>{% endfor %}
    {% for message in messages %}{{ mark(message) }}<|im_start|>...<|im_end|>{% endfor %}{{ close() }}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Template, nodes
from jinja2.visitor import NodeTransformer

# The environment that `apply_chat_template` renders with: sandbox, filters, extensions. It has no public name.
from transformers.utils.chat_template_utils import _compile_jinja_template

from qlora_cli import compat
from qlora_cli.data.example import Message

Span = tuple[int, int]
"""First character and the one after the last."""

# Characters of the last private-use plane; text that holds them is refused by the count of marks.
_OPEN, _CLOSE = "\U0010fa01", "\U0010fa02"
_MARK = re.compile(f"{_OPEN}(-?\\d+),(-?\\d+){_CLOSE}")
_NO_MESSAGE = -1
_GENERATION = -1  # stands for the loop's number in the marks of a {% generation %} block


@dataclass
class Trace:
    """A rendered chat and who made which part of it."""

    text: str
    """Exactly what `apply_chat_template(tokenize=False)` gives."""

    turns: dict[int, Span] = field(default_factory=dict)
    """Message's index -> its characters; messages that the template leaves out are absent."""

    generated: list[Span] = field(default_factory=list)
    """Characters inside `{% generation %}` blocks."""

    @property
    def end_of_turns(self) -> int:
        """Where the text of the last message ends."""
        return max((end for _, end in self.turns.values()), default=0)


class AmbiguousTraceError(ValueError):
    """The template prints a message at more than one place, or the text holds the marks' characters."""


class _MarkInserter(NodeTransformer):
    """Puts the marks into a parsed template."""

    def __init__(self) -> None:
        self.num_loops = 0
        self.has_generation_blocks = False

    def visit_For(self, node: nodes.For) -> list[nodes.Node]:  # noqa: N802 - the name that Jinja calls
        loop = self.num_loops
        self.num_loops += 1
        self.generic_visit(node)
        if isinstance(node.target, nodes.Name):
            target = nodes.Name(node.target.name, "load")
            node.body.insert(0, _print_call(node.lineno, "__mark_message__", nodes.Const(loop), target))
        return [node, _print_call(node.lineno, "__mark_loop_end__", nodes.Const(loop))]

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802 - the name that Jinja calls
        self.generic_visit(node)
        called = node.call.node
        if isinstance(called, nodes.ExtensionAttribute) and called.name == "_generation_support":
            self.has_generation_blocks = True
            start = _print_call(node.lineno, "__mark_generation__", nodes.Const(0))
            end = _print_call(node.lineno, "__mark_generation__", nodes.Const(_NO_MESSAGE))
            node.body = [start, *node.body, end]
        return node


def _print_call(line: int, function: str, *arguments: nodes.Expr) -> nodes.Output:
    """The node of `{{ function(arguments) }}`."""
    call = nodes.Call(nodes.Name(function, "load"), list(arguments), [], None, None)
    return nodes.Output([call], lineno=line)


class TracedTemplate:
    """A chat template that tells which characters each message made."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """
        Args:
            source: Jinja text of the template.
            special_tokens: names the template may print, such as `bos_token`.

        Raises:
            jinja2.TemplateSyntaxError: if `source` is not Jinja.
        """
        environment = _compile_jinja_template(source).environment
        inserter = _MarkInserter()
        tree = inserter.visit(environment.parse(source))
        tree.set_environment(environment)
        self.has_generation_blocks = inserter.has_generation_blocks
        self._special_tokens = dict(special_tokens)
        self._index_of: dict[int, int] = {}
        self._open_loops: set[int] = set()
        self._num_marks = 0
        marks = {
            "__mark_message__": self._mark_message,
            "__mark_loop_end__": self._mark_loop_end,
            "__mark_generation__": lambda index: self._mark(_GENERATION, index),
        }
        code = environment.compile(tree)
        self._template = Template.from_code(environment, code, environment.make_globals(marks))

    def render(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, add_generation_prompt: bool
    ) -> Trace:
        """The chat as text, with each message's characters.

        Raises:
            AmbiguousTraceError: if a message is printed twice.
            jinja2.TemplateError: what the template itself refuses.
        """
        # The same preparation as in apply_chat_template: keys that are None are absent, reasoning has one name.
        chat = compat.alias_reasoning_fields(
            [{key: value for key, value in message.items() if value is not None} for message in messages]
        )
        self._index_of = {id(message): index for index, message in enumerate(chat)}
        self._open_loops.clear()
        self._num_marks = 0
        marked = self._template.render(
            messages=chat,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
        )
        return _read_marks(marked, self._num_marks)

    def _mark(self, loop: int, index: int) -> str:
        self._num_marks += 1
        return f"{_OPEN}{loop},{index}{_CLOSE}"

    def _mark_message(self, loop: int, item: Any) -> str:
        index = self._index_of.get(id(item))
        if index is not None:
            self._open_loops.add(loop)
            return self._mark(loop, index)
        # A message that the template made up, e.g. a default system turn, ends the one before it.
        return self._mark(loop, _NO_MESSAGE) if loop in self._open_loops else ""

    def _mark_loop_end(self, loop: int) -> str:
        if loop not in self._open_loops:
            return ""
        self._open_loops.discard(loop)
        return self._mark(loop, _NO_MESSAGE)


def _read_marks(marked: str, num_marks: int) -> Trace:
    """Cut the marks out; between two marks of one loop lies the text of the first one's message.

    >>> a, b, end = (f"{_OPEN}0,{index}{_CLOSE}" for index in (0, 1, -1))
    >>> _read_marks(f"<s>{a}Hi{b}Hello{end}.", num_marks=3)
    Trace(text='<s>HiHello.', turns={0: (3, 5), 1: (5, 10)}, generated=[])
    """
    pieces = _MARK.split(marked)  # text, loop, index, text, loop, index, ..., text
    text = "".join(pieces[::3])
    if len(pieces) // 3 != num_marks or _OPEN in text or _CLOSE in text:
        raise AmbiguousTraceError(
            "the chat cannot be traced: the template changes or copies what it prints in its loop"
        )
    trace = Trace(text)
    open_marks: dict[int, tuple[int, int]] = {}  # loop -> index of the message, where its text starts
    position = 0
    for at in range(1, len(pieces), 3):
        position += len(pieces[at - 1])
        loop, index = int(pieces[at]), int(pieces[at + 1])
        if loop in open_marks:
            _close(trace, loop, *open_marks.pop(loop), position)
        if index != _NO_MESSAGE:
            open_marks[loop] = (index, position)
    return trace


def _close(trace: Trace, loop: int, index: int, start: int, end: int) -> None:
    """Note the text from `start` to `end`, unless nothing was printed there, as in loops that only count."""
    if loop == _GENERATION:
        if end > start:
            trace.generated.append((start, end))
    elif trace.text[start:end].strip():
        if index in trace.turns:
            raise AmbiguousTraceError(f"the template prints message {index + 1} at two places")
        trace.turns[index] = (start, end)
