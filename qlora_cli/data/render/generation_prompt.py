"""What a template prints to make the assistant speak (`add_generation_prompt=True`), remembered as far as that is safe.

For most templates the tree shows that it is the same for every conversation (`template_tree.py`). In the others it
depends on roles and tool calls and hardly ever on text, so conversations of one shape share it once the first
`NUM_ROWS_PROVEN` of that shape agreed; after that one in `ROWS_BETWEEN_PROOFS` is rendered again, and so is each
whose turn does not begin with what is remembered. Once two disagree, nothing is remembered any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qlora_cli.data.example import Message
from qlora_cli.data.render.traced_template import Trace
from qlora_cli.errors import DataError

Tools = list[dict[str, Any]] | None

STAND_IN = "\U0010fa03"
"""A private-use character in place of an answer, to see what the template prints around it."""

NUM_ROWS_PROVEN = 8
ROWS_BETWEEN_PROOFS = 64
MAX_SHAPES = 10_000
"""Remembered at once; long conversations have a shape of their own each."""

_ONE_TURN = [{"role": "user", "content": STAND_IN}]


class GenerationPrompts:
    """The generation prompt of each conversation."""

    def __init__(self, render: Callable[[Sequence[Message], Tools], Trace]) -> None:
        """
        Args:
            render: the template with its generation prompt.
        """
        self._render = render
        self._prompts: dict[tuple[Any, ...], tuple[str, int]] = {}  # shape -> prompt, rows that asked for it
        self._depends_on_text = False
        self._constant: str | None = None
        try:
            trace = render(_ONE_TURN, None)
        except DataError:
            return  # a template that wants more than one turn
        if trace.ends_constantly:
            self._constant = trace.text[trace.end_of_turns :]

    def before(self, messages: Sequence[Message], index: int, tools: Tools, turn: str) -> str:
        """The prompt that makes the assistant say message `index`.

        Args:
            messages: the conversation.
            index: of an assistant turn in it.
            tools: those of the conversation.
            turn: what the template prints for the message.

        Raises:
            DataError: if the template refuses the messages before it.
        """
        if self._constant is not None:
            return self._constant
        shape = (bool(tools), *((message["role"], "tool_calls" in message) for message in messages[:index]))
        known, num_asked = self._prompts.get(shape, ("", 0))
        is_known = num_asked >= NUM_ROWS_PROVEN and num_asked % ROWS_BETWEEN_PROOFS and turn.startswith(known)
        if not is_known or self._depends_on_text:
            prompt = self._rendered(messages[:index], tools)
            if num_asked and prompt != known:
                self._depends_on_text = True
            known = prompt
        if len(self._prompts) >= MAX_SHAPES:
            self._prompts.clear()
        self._prompts[shape] = (known, num_asked + 1)
        return known

    def _rendered(self, messages: Sequence[Message], tools: Tools) -> str:
        trace = self._render(messages or _ONE_TURN, tools)
        return trace.text[trace.end_of_turns :]
