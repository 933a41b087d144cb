"""Oddities of a row that can be trained on."""

from __future__ import annotations

from enum import StrEnum

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.clean import answer_of
from qlora_cli.data.example import Conversation, Example, Message
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.token_row import TokenRow

MIN_ANSWER_CHARS = 3

NUM_CLOSING_TOKENS = 4
"""Trained tokens at the end of an answer among which its end of turn is looked for: a template may print a line end or
more behind it."""


class RowWarning(StrEnum):
    """Notes that do not keep training from starting; the value is what tables call it."""

    ROLE_ORDER = "roles out of order"
    SHORT_ANSWER = "answer shorter than 3 characters"
    SPECIAL_TEXT = "special tokens in the text, kept as plain text"
    DOUBLE_BOS = "begins with two beginning-of-sequence tokens"
    UNENDED = "answer without an end-of-turn token"


FOLLOWERS: dict[str, frozenset[str]] = {
    "start": frozenset({"system", "developer", "user"}),
    "system": frozenset({"user"}),
    "developer": frozenset({"user"}),
    "user": frozenset({"assistant", "call"}),
    "assistant": frozenset({"user"}),
    "call": frozenset({"tool", "user"}),
    "tool": frozenset({"tool", "assistant", "call"}),
}
"""Turn -> those that may come next; `call` is an assistant's turn that calls tools."""


class RowWarner:
    """Looks at rows as they are trained."""

    def __init__(self, renderer: Renderer) -> None:
        """
        Args:
            renderer: that the rows came from.
        """
        self._end_of_turn_ids = renderer.end_of_turn_ids
        self._two_bos = [renderer.bos_token_id] * 2

    def observe(self, example: Example, row: TokenRow) -> list[RowWarning]:
        """Oddities of a row; most have none."""
        found = []
        if isinstance(example, Conversation) and not is_in_order(example.messages):
            found.append(RowWarning.ROLE_ORDER)
        if len(answer_of(example).strip()) < MIN_ANSWER_CHARS:
            found.append(RowWarning.SHORT_ANSWER)
        if row.has_special_text:
            found.append(RowWarning.SPECIAL_TEXT)
        if row.input_ids[:2] == self._two_bos:
            found.append(RowWarning.DOUBLE_BOS)
        if not self._is_ended(row.labels):
            found.append(RowWarning.UNENDED)
        return found

    def _is_ended(self, labels: list[int]) -> bool:
        """Whether a token that ends a turn is among the last that are trained, whatever is masked behind them."""
        end = len(labels)
        while end and labels[end - 1] == IGNORE_INDEX:
            end -= 1
        return not self._end_of_turn_ids.isdisjoint(labels[max(0, end - NUM_CLOSING_TOKENS) : end])


def is_in_order(messages: list[Message]) -> bool:
    """Whether user and assistant take turns, after a system turn or none, and tools answer only calls.

    >>> is_in_order([{"role": role} for role in ("system", "user", "assistant", "user", "assistant")])
    True
    >>> is_in_order([{"role": role} for role in ("user", "system", "assistant")])
    False
    """
    before = "start"
    for message in messages:
        turn = "call" if "tool_calls" in message else message["role"]
        if turn not in FOLLOWERS[before]:
            return False
        before = turn
    return True
