"""Text that a template prints to make the assistant answer (`add_generation_prompt=True`).

For most templates the tree shows that it is the same for every conversation (`template_tree.py`). In the others it
follows from what comes right before the answer: system turn, tools, the last question, and what was called since. So
a short conversation of these alone is rendered, not all that came before, which in a long conversation would be done
again for every answer. That the two agree is tested on probes for each template (`proof.py`), and on rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from qlora_cli.data.example import Message
from qlora_cli.data.render.traced_template import RenderTrace
from qlora_cli.errors import DataError

Tools = list[dict[str, Any]] | None

STAND_IN = "\U0010fa03"
"""A private-use character in place of an answer, to see what the template prints around it."""

_ONE_TURN = [{"role": "user", "content": STAND_IN}]
_INSTRUCTING = ("system", "developer")


class Render(Protocol):
    """Renders with the traces of a template."""

    def __call__(
        self, messages: Sequence[Message], tools: Tools = None, *, add_generation_prompt: bool
    ) -> RenderTrace: ...


class GenerationPrompts:
    """The generation prompt of each conversation."""

    def __init__(self, render: Render) -> None:
        """
        Args:
            render: the template, with and without its generation prompt.
        """
        self._render = render
        self._constant: str | None = None
        self.takes_whole = False
        """Whether all that comes before an answer is rendered, not the short conversation."""
        try:
            trace = render(_ONE_TURN, None, add_generation_prompt=True)
        except DataError:
            return  # a template that wants more than one turn
        if trace.ends_constantly:
            self._constant = trace.text[trace.end_of_turns :]

    def before(self, trace: RenderTrace, messages: Sequence[Message], index: int, tools: Tools) -> str:
        """The prompt that makes the assistant say message `index`.

        Args:
            trace: of the whole conversation.
            messages: the conversation.
            index: of an assistant turn in it.
            tools: those of the conversation.

        Raises:
            DataError: if the template refuses the messages before it.
        """
        if self._constant is not None:
            return self._constant
        short = what_matters(messages, index)
        if self.takes_whole or not short:
            return self._rendered(trace, messages[:index] or _ONE_TURN, index, tools)
        try:
            return self._rendered(trace, short, index, tools)
        except DataError:
            return self._rendered(trace, messages[:index], index, tools)

    def _rendered(self, trace: RenderTrace, before: Sequence[Message], index: int, tools: Tools) -> str:
        """Text that a template adds to `before`, which ends like the conversation does before message `index`."""
        asked = self._render(before, tools, add_generation_prompt=True)
        last = len(before) - 1
        if last in asked.turns and index - 1 in trace.turns:
            start, _ = asked.turns[last]
            ended = trace.text[slice(*trace.turns[index - 1])]
            if asked.text.startswith(ended, start):
                return asked.text[start + len(ended) :]
        unasked = self._render(before, tools, add_generation_prompt=False)
        end = unasked.end_of_turns
        if asked.text[:end] != unasked.text[:end]:
            end = asked.end_of_turns
        return asked.text[end:]


def what_matters(messages: Sequence[Message], index: int) -> list[Message]:
    """Of the messages before an answer: instructions at the start, the last question, and the last round of calls.

    >>> roles = "system user assistant user assistant tool assistant tool assistant".split()
    >>> [message["role"] for message in what_matters([{"role": role} for role in roles], 8)]
    ['system', 'user', 'assistant', 'tool']
    """
    first = next((at for at, message in enumerate(messages) if message["role"] not in _INSTRUCTING), 0)
    asked = next((at for at in range(index - 1, -1, -1) if messages[at]["role"] == "user"), None)
    if asked is None:
        return list(messages[:index])
    spoken = next((at for at in range(index - 1, asked, -1) if messages[at]["role"] == "assistant"), index)
    return [*messages[: min(first, asked)], messages[asked], *messages[spoken:index]]
