"""Kinds of content x positions on one template, each cell judged by code that shares nothing with the renderer.

Every text of a row holds a word that stands nowhere else. What became of the word is seen in what
`apply_chat_template` prints and in the tokens of the row, read back byte by byte: whether it is there, and whether it
is trained. A cell is *printed* (all words there, those of the assistant trained and no others), *refused* or *noted*.
A row that is none of these was lost in silence, and `judge` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.parity import differing_prompts
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.data.render.renderer import Renderer
from tests.data.render.content_kinds import KINDS, POSITIONS, TOOL, Case, make_case

PLACE = Place("test.jsonl", 1, 1)
FAULTS = (jinja2.TemplateError, TypeError, AttributeError, KeyError, ValueError, IndexError)


class Verdict(NamedTuple):
    """What became of a row."""

    outcome: str
    """printed, refused or noted."""

    faults: tuple[str, ...] = ()
    """What is wrong with that."""

    text: str = ""
    """Why it was refused, or what is noted."""


def judge(renderer: Renderer, tokenizer: Any, case: Case) -> Verdict:
    """What the renderer makes of a row, held against what transformers prints."""
    [row] = renderer.render_each([Conversation(case.messages, case.tools, PLACE)])
    if isinstance(row, RowError):
        faults = _needless_refusal(tokenizer, case) if row.cause == RejectionReason.UNPRINTED else []
        text = row.problems[0].text
        is_placed = "outside" in text or "inside" in text
        return Verdict("refused", () if is_placed else tuple(faults), text)
    flags, text = trained_bytes(tokenizer, row)
    faults = [word for word, owner in case.words if not _is_right(word, owner, case, flags, text)]
    starts = _wrong_starts(tokenizer, case, flags, text)
    unprinted = [note.what for note in row.unprinted]
    differing = list(differing_prompts(Conversation(case.messages, case.tools, PLACE), renderer))
    if differing:
        return Verdict("noted", (), "; ".join(unprinted + differing))
    if unprinted:
        is_said = any("{% generation %}" in what for what in unprinted)
        return Verdict("noted", () if is_said else tuple(starts), "; ".join(unprinted))
    return Verdict("printed", tuple(faults + starts))


def _is_right(word: str, owner: int, case: Case, flags: list[bool], text: bytes) -> bool:
    """Whether a word is printed, and trained just where it is the assistant's."""
    is_assistant = owner != TOOL and case.messages[owner]["role"] == "assistant"
    places = []
    at = text.find(word.encode())
    while at >= 0:
        places.append(set(flags[at : at + len(word)]))
        at = text.find(word.encode(), at + 1)
    if is_assistant:
        return {True} in places and {True, False} not in places
    # A call spells the name and the parameter of its tool.
    return bool(places) and all(place == {False} for place in places)


def _wrong_starts(tokenizer: Any, case: Case, flags: list[bool], text: bytes) -> list[str]:
    """Answers that do not begin where their generation prompt ends, as far as the row begins with it."""
    faults = []
    for index, message in enumerate(case.messages):
        if message["role"] != "assistant" or not index:
            continue
        for shaped in shapes(case.messages[:index]):
            prompt = plain(tokenizer, shaped, case.tools, add_generation_prompt=True)
            if prompt is None or not text.startswith(prompt.encode()):
                continue
            end = len(prompt.encode())
            if flags[end - 1] or end == len(flags) or not flags[end]:
                faults.append(f"answer {index} begins elsewhere than behind {prompt[-20:]!r}")
            break
    return faults


def _needless_refusal(tokenizer: Any, case: Case) -> list[str]:
    """A fault if a shape that the template takes prints every word."""
    for shaped in shapes(case.messages):
        text = plain(tokenizer, shaped, case.tools)
        if text is not None and all(word in text for word, _ in case.words):
            return ["refused although every word is printed"]
    return []


def shapes(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages with content as text, and as parts; a call without words in each way."""
    for wordless in ("as it is", "", None):
        shaped = [
            {**message, "content": wordless}
            if "tool_calls" in message and not message["content"] and wordless != "as it is"
            else message
            for message in messages
        ]
        yield shaped
        yield [
            {**message, "content": [{"type": "text", "text": message["content"]}]} if message["content"] else message
            for message in shaped
        ]


def plain(tokenizer: Any, messages: list[dict[str, Any]], tools: Any, **more: bool) -> str | None:
    """What transformers prints; None where the template fails."""
    try:
        text: str = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **more)
    except FAULTS:
        return None
    return text


def trained_bytes(tokenizer: Any, row: Any) -> tuple[list[bool], bytes]:
    """For each byte of the row's text whether its token is trained."""
    flags: list[bool] = []
    text = b""
    pieces = _pieces_of(tokenizer)
    for token, label in zip(row.input_ids, row.labels, strict=True):
        piece = pieces[token]
        flags += [label != IGNORE_INDEX] * len(piece)
        text += piece
    return flags, text


@lru_cache(maxsize=4)
def _pieces_of(tokenizer: Any) -> dict[int, bytes]:
    """Bytes of each token."""
    added = {number: str(token.content).encode() for number, token in tokenizer.added_tokens_decoder.items()}
    return added | {
        number: bytes(_BYTE_OF[letter] for letter in token)
        for token, number in tokenizer.get_vocab().items()
        if number not in added
    }


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in shown}
    hidden = (byte for byte in range(256) if byte not in shown)
    return letters | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_BYTE_OF = _byte_letters()


COLUMNS = tuple(KINDS)


def table_row(name: str, template: str, make_tokenizer: Any) -> tuple[str, list[str]]:
    """A template's line of the table in docs/templates.md, and what is wrong with its cells."""
    tokenizer = make_tokenizer(template)
    renderer = Renderer(tokenizer)
    cells, faults = [], []
    for kind in COLUMNS:
        letters = ""
        for position in POSITIONS:
            case = make_case(kind, position)
            if case is None:
                continue
            verdict = judge(renderer, tokenizer, case)
            letters += verdict.outcome[0]
            faults += [f"{kind}, {position}: {verdict.outcome}, but {fault}" for fault in verdict.faults]
        cells.append(letters[0] if len(set(letters)) == 1 else letters)
    return f"| {name} | {' | '.join(cells)} |", faults
