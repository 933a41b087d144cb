"""Characters of a rendered chat by the message that made them, found in the template itself.

A chat template is a Jinja program that loops over the messages. Its parsed tree is changed in one way: every loop
body begins with a call that prints a private mark when the loop is at a message, and a mark follows the loop.
The changed program is rendered once; the marks are cut out and where they stood bounds each message's text. No
template's words are guessed. `{% generation %}` blocks, where a template has them, are marked in the same way.

    {% for message in messages %}<|im_start|>...<|im_end|>{% endfor %}
    {% for message in messages %}{{ message | mark }}<|im_start|>...<|im_end|>{% endfor %}{{ close }}
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import Template

# What `apply_chat_template` does before it renders. It has no public name.
from transformers.utils.chat_template_utils import _alias_reasoning_fields

from qlora_cli import upstream
from qlora_cli.data.example import Message
from qlora_cli.data.render.template_code import (
    MARK_GENERATION,
    MARK_LOOP_END,
    MARK_MESSAGE,
    NO_MESSAGE,
    NOTHING,
    compiled,
    environment_of,
)

Span = tuple[int, int]
"""First character and the one after the last."""

# A mark is its name, m0 or m1 or ..., between two of these: a code point that Unicode keeps out of all text. A chat
# that holds it is refused, and so is one whose marks came out changed, for example reversed.
_EDGE = "\ufdd1"
_GENERATION = -1  # stands for the loop's number in the marks of a {% generation %} block

_Mark = tuple[int, int]
"""Number of the loop, index of the message."""


@dataclass(slots=True)
class RenderTrace:
    """A rendered chat and who made which part of it."""

    text: str
    """Exactly what `apply_chat_template(tokenize=False)` gives."""

    turns: dict[int, Span] = field(default_factory=dict)
    """Message's index -> its characters; messages that the template leaves out are absent."""

    generated: list[Span] = field(default_factory=list)
    """Characters inside `{% generation %}` blocks."""

    ends_constantly: bool = False
    """Whether what follows the last message is the same after every conversation."""

    @property
    def end_of_turns(self) -> int:
        """End of the last message's text."""
        return max((end for _, end in self.turns.values()), default=0)


class AmbiguousTraceError(ValueError):
    """The template prints a message at more than one place, or the text holds the marks' characters."""


class TracedTemplate:
    """A chat template that records which characters each message made."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], date: datetime.date | None = None) -> None:
        """
        Args:
            source: Jinja text of the template.
            special_tokens: names the template may print, such as `bos_token`.
            date: the day, at midnight, that the template gets when it asks for the time; by default the clock's.

        Raises:
            jinja2.TemplateSyntaxError: if `source` is not Jinja.
            ResourceError: if an installed library lacks what this needs of it.
        """
        upstream.check(upstream.Road.TEMPLATES)
        self.code = compiled(source)
        environment = environment_of(source)
        marks = {MARK_MESSAGE: self._mark_message, MARK_LOOP_END: self._mark_loop_end}
        environment.filters = {**environment.filters, **marks, MARK_GENERATION: self._mark_generation}
        template, unchanged = (
            Template.from_code(environment, code, environment.make_globals(None))
            for code in (self.code.marked, self.code.unchanged)
        )
        self._new_context = template.new_context
        self._print = template.root_render_func
        self._print_unchanged = unchanged.root_render_func
        self._variables = {**template.globals, "documents": None, NOTHING: None, **special_tokens}
        if date is not None:
            self._variables["strftime_now"] = datetime.datetime.combine(date, datetime.time()).strftime
        self._index_of: dict[int, int] = {}
        self._open_loops: set[int] = set()
        self._marks: list[_Mark] = []
        self.printing: int | None = None
        """Index of the message that the last rendering came to; None where it came to none."""

    def render(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, add_generation_prompt: bool
    ) -> RenderTrace:
        """The chat as text, with each message's characters.

        Raises:
            AmbiguousTraceError: if a message is printed twice.
            jinja2.TemplateError: what the template itself refuses.
        """
        chat = _as_handed_to_templates(messages)
        self._index_of = {id(message): index for index, message in enumerate(chat)}
        self._open_loops.clear()
        self._marks = []
        self.printing = None
        context = self._new_context(self._given(chat, tools, add_generation_prompt), shared=True)
        marked = "".join(self._print(context))
        trace = _read_marks(marked, self._marks)
        # The tree shows what follows the last loop; the marks, that this loop printed the last message.
        last_loop = self.code.last_loop
        trace.ends_constantly = last_loop is not None and self._marks[-1:] == [(last_loop, NO_MESSAGE)]
        return trace

    def plain(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, add_generation_prompt: bool = False
    ) -> str:
        """The chat as the unchanged template prints it.

        Raises:
            jinja2.TemplateError: what the template itself refuses.
        """
        chat = _as_handed_to_templates(messages)
        context = self._new_context(self._given(chat, tools, add_generation_prompt), shared=True)
        return "".join(self._print_unchanged(context))

    def _given(
        self, chat: Sequence[Message], tools: list[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> dict[str, Any]:
        return {**self._variables, "messages": chat, "tools": tools, "add_generation_prompt": add_generation_prompt}

    def _mark(self, loop: int, index: int) -> str:
        self._marks.append((loop, index))
        return f"{_EDGE}m{len(self._marks) - 1}{_EDGE}"

    def _mark_message(self, item: Any, loop: int) -> str:
        index = self._index_of.get(id(item))
        if index is not None:
            self.printing = index
            self._open_loops.add(loop)
            return self._mark(loop, index)
        # A message that the template made up, e.g. a default system turn, ends the one before it.
        return self._mark(loop, NO_MESSAGE) if loop in self._open_loops else ""

    def _mark_loop_end(self, _: Any, loop: int) -> str:
        if loop not in self._open_loops:
            return ""
        self._open_loops.discard(loop)
        return self._mark(loop, NO_MESSAGE)

    def _mark_generation(self, _: Any, index: int) -> str:
        return self._mark(_GENERATION, index)


def _as_handed_to_templates(messages: Sequence[Message]) -> Sequence[Message]:
    """The same preparation as in `apply_chat_template`: reasoning has one name.

    Messages of a role and a content alone, as most are, need none.
    """
    for message in messages:
        if len(message) != 2 or "content" not in message:
            break
    else:
        if len(set(map(id, messages))) == len(messages):
            return messages
    # Each message becomes an object of its own, by which it is known, even where one is in the list twice.
    aliased: Sequence[Message] = _alias_reasoning_fields([dict(message) for message in messages])
    return aliased


def _read_marks(marked: str, marks: Sequence[_Mark]) -> RenderTrace:
    """Cut the marks out; between two marks of one loop is the text of the first one's message.

    Args:
        marked: the chat with its marks.
        marks: what each mark means, by its number.

    >>> marks = [(0, 0), (0, 1), (0, -1)]  # the first loop is at message 0, then at message 1, then at its end
    >>> a, b, end = (f"{_EDGE}m{number}{_EDGE}" for number in range(3))
    >>> _read_marks(f"<s>{a}Hi{b}Hello{end}.", marks)
    RenderTrace(text='<s>HiHello.', turns={0: (3, 5), 1: (5, 10)}, generated=[], ends_constantly=False)
    """
    pieces = marked.split(_EDGE)  # text, name, text, name, ..., text
    parts, names = pieces[::2], pieces[1::2]
    expected = _first_names(len(marks))
    if len(parts) != len(marks) + 1 or (names != expected and sorted(names) != sorted(expected)):
        raise AmbiguousTraceError(
            "the chat cannot be traced: the template changes or copies what it prints in its loop"
        )
    if names != expected:  # captured text is printed later than it was made
        marks = [marks[expected.index(name)] for name in names]
    trace = RenderTrace("".join(parts))
    open_marks: dict[int, _Mark] = {}  # loop -> index of the message, where its text starts
    position = 0
    for (loop, index), part in zip(marks, parts, strict=False):
        position += len(part)
        before = open_marks.pop(loop, None)
        if before is not None:
            _close(trace, loop, *before, position)
        if index != NO_MESSAGE:
            open_marks[loop] = (index, position)
    return trace


@lru_cache(maxsize=1024)
def _first_names(count: int) -> list[str]:
    return [f"m{number}" for number in range(count)]


def _close(trace: RenderTrace, loop: int, index: int, start: int, end: int) -> None:
    """Note the text from `start` to `end`, unless nothing was printed there, as in loops that only count."""
    if start == end:
        return
    if loop == _GENERATION:
        trace.generated.append((start, end))
    elif not trace.text[start:end].isspace():
        if index in trace.turns:
            raise AmbiguousTraceError(f"the template prints message {index + 1} at two places")
        trace.turns[index] = (start, end)
