"""Whether a conversation's rendering holds all of its texts, each at its place: what is trained in an answer, the rest
before the answers that follow from it.

A text that is missing is looked for once more in the conversation as it was when its answer was the last one. Printed
there, the template drops it by design once other turns follow, as many do with earlier thinking: that is noted. Printed
nowhere, it would be lost silently: the row is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from qlora_cli.data.example import Message
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.data.render.generation_prompt import Tools
from qlora_cli.data.render.leaves import TOOLS, Leaf, LeafKind
from qlora_cli.data.render.mask import AnswerSpan
from qlora_cli.data.render.placement import Places
from qlora_cli.data.token_row import Unprinted

Find = Callable[[Sequence[Message]], Places | None]
"""The places of a conversation's first messages; None where the template refuses them."""


PER_ANSWER = "`data.row_per: answer` makes each answer the last one of a row of its own, as inference will send it"
_DROPPED = "the template never prints it in this place; inference would not send it either"
_CALLS = "use a base model or `model.chat_template` whose template prints tool calls, or leave such rows out"
_TEMPLATE = "name a template that prints it in `model.chat_template`"

LATE = Unprinted(
    "what the model must say before its {% generation %} block begins",
    "let the block begin where the text of `add_generation_prompt` ends",
)
"""A mask that the template itself sets too narrow."""

_WAYS_ON = {
    LeafKind.CONTENT: f"{_TEMPLATE}, or write it where the template prints it (instructions in a 'system' turn)",
    LeafKind.REASONING: f"{_TEMPLATE}, or `ignore: [reasoning_content]` beside `path` to train the answers alone",
    LeafKind.CALL: _CALLS,
    LeafKind.ARGUMENT: _CALLS,
    LeafKind.TOOL: "use a base model or `model.chat_template` whose template prints tools, or leave such rows out",
}


class Row(NamedTuple):
    """A rendered conversation, as it is looked at here."""

    messages: Sequence[Message]
    tools: Tools
    answers: Sequence[AnswerSpan]
    trained: Collection[int | None]
    """Messages whose answers are trained; None for an answer of which it is not known whose it is."""

    is_marked: bool
    """Whether the template itself marks what is trained."""


def check_printed(row: Row, places: Places, find: Find) -> list[Unprinted]:
    """Texts that the template leaves out by design.

    Raises:
        RowError: if it leaves out what is trained, or what a trained answer follows from.
    """
    earlier = _Earlier(row.messages, find)
    spans = [(answer.start, answer.end) for answer in row.answers if answer.turn in row.trained]
    notes: dict[Unprinted, None] = {}
    faults: list[RowError] = []
    for number, leaf in enumerate(places.leaves):
        found = places.of[number]
        role = "" if leaf.owner == TOOLS else row.messages[leaf.owner]["role"]
        note: Unprinted | None = None
        try:
            if not found:
                note = _lost(leaf, role, row, earlier, number)
            elif role == "assistant":
                note = _misplaced(leaf, found, row)
            elif leaf.kind != LeafKind.SCHEMA and not leaf.is_key:
                note = _in_prompt(leaf, role, found, spans if places.is_certain[number] else (), row)
        except RowError as fault:
            faults.append(fault)
        if note is not None:
            notes[note] = None
    if faults:
        raise _first_of(faults)
    return list(notes)


def _first_of(faults: Sequence[RowError]) -> RowError:
    """The first fault of a row, with the number of the others."""
    first = faults[0].problems[0]
    others = f" ({len(faults)} such texts in this row)" if len(faults) > 1 else ""
    return RowError(faults[0].cause, first.text + others, hint=first.hint)


class _Earlier:
    """The places of a conversation that is cut behind an answer, found once."""

    def __init__(self, messages: Sequence[Message], find: Find) -> None:
        self._messages = messages
        self._find = find
        self._known: dict[str, bool] = {}

    def prints(self, leaf: Leaf, role: str, number: int) -> bool:
        """Whether a text is printed when the answer that it belongs to, or that follows it, is the last one.

        Texts of a kind are treated alike, so one of them is looked for.
        """
        answers = (at for at, message in enumerate(self._messages) if message["role"] == "assistant")
        last = next((at for at in answers if at >= leaf.owner), None)
        if last is None or last == len(self._messages) - 1:
            return False
        kind = _kind_of(leaf, role)
        if kind not in self._known:
            places = self._find(self._messages[: last + 1])
            # The tools come first among the leaves, then the messages: the numbers are the same.
            self._known[kind] = places is not None and bool(places.of[number])
        return self._known[kind]


def _lost(leaf: Leaf, role: str, row: Row, earlier: _Earlier, number: int) -> Unprinted:
    """A text that the rendering does not hold.

    Raises:
        RowError: unless it is dropped by design.
    """
    if leaf.kind == LeafKind.SCHEMA:
        return Unprinted("parts of the tools' schemas", _DROPPED)
    is_trained = role != "assistant" or leaf.owner in row.trained or None in row.trained
    if earlier.prints(leaf, role, number):
        what = f"{_kind_of(leaf, role)}, printed only until other turns follow"
        return Unprinted(what, PER_ANSWER if is_trained else _DROPPED)
    if not is_trained:
        return Unprinted(f"{_kind_of(leaf, role)} of untrained turns", _DROPPED)
    raise RowError(
        RejectionReason.UNPRINTED,
        f"{_place_of(leaf, role)} is not printed by the chat template, so "
        + ("it would not be trained" if role == "assistant" else "the answer would be trained without it"),
        hint=_way_on(leaf, role),
    )


def _way_on(leaf: Leaf, role: str) -> str:
    if role == "assistant" and leaf.kind == LeafKind.CONTENT:
        return f"{_TEMPLATE}, or take it out of the content to train the rest alone"
    return _WAYS_ON[leaf.kind]


def _misplaced(leaf: Leaf, found: Sequence[tuple[int, int]], row: Row) -> Unprinted | None:
    """An assistant's text that is printed, but not where it is trained."""
    if leaf.owner not in row.trained or None in row.trained:
        return None
    own = [answer for answer in row.answers if answer.turn == leaf.owner]
    if any(answer.start <= start and end <= answer.end for start, end in found for answer in own):
        return None
    if row.is_marked:
        return Unprinted(f"{_kind_of(leaf, 'assistant')} outside of {{% generation %}}, so not trained", "")
    raise RowError(
        RejectionReason.UNPRINTED,
        f"{_place_of(leaf, 'assistant')} is printed outside of what the assistant says, so it would not be trained",
        hint=_way_on(leaf, "assistant"),
    )


def _in_prompt(
    leaf: Leaf, role: str, found: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], row: Row
) -> Unprinted | None:
    """A text that is not the assistant's: it must not be trained, and must come before the answers that follow it."""
    if any(start < end_of and end > start_of for start, end in found for start_of, end_of in spans):
        raise RowError(
            RejectionReason.UNPRINTED,
            f"{_place_of(leaf, role)} is printed inside of what the assistant says, where it would be trained",
            hint="put {% generation %} blocks around what the assistant says in the template",
        )
    first = min(start for start, _ in found)
    if any(answer.turn is not None and answer.turn > leaf.owner and answer.end <= first for answer in row.answers):
        return Unprinted(f"{_kind_of(leaf, role)}, printed behind earlier answers", PER_ANSWER)
    return None


def _kind_of(leaf: Leaf, role: str) -> str:
    """Kind of text, as findings count it."""
    if leaf.kind == LeafKind.REASONING:
        return leaf.name
    if leaf.kind == LeafKind.CONTENT:
        part = "content" if leaf.name == "the content" else "parts of the content"
        return f"{part} of '{role}' turns"
    return f"{leaf.kind.value}s"


def _place_of(leaf: Leaf, role: str) -> str:
    """Place of the text, as errors name it."""
    return leaf.name if leaf.owner == TOOLS else f"{leaf.name} of message {leaf.owner + 1} ('{role}')"
