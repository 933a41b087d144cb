"""A token row cut into pieces that can be shown: whole characters, with their tokens, and nothing invisible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from qlora_cli.constants import IGNORE_INDEX, REPLACEMENT
from qlora_cli.data.token_row import TokenRow

MAX_TOKENS_OF_A_CHARACTER = 8
"""UTF-8 takes at most 4 bytes; past this many tokens the bytes are shown as they decode."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of one kind that together make whole characters."""

    start: int
    """Position of the first token in its row."""

    input_ids: tuple[int, ...]
    text: str
    is_trained: bool
    is_special: bool
    """One of the tokenizer's added tokens, not text that spells one."""


def pieces_of(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    """One piece a token, or several tokens where a character is spread over them."""
    before = 0  # where the piece before this one starts
    for start, end, is_trained, is_special in _runs(row, tokenizer):
        at_most = 1 if is_special else MAX_TOKENS_OF_A_CHARACTER
        while start < end:
            for stop in range(start + 1, min(start + at_most, end) + 1):
                text = _text(row.input_ids, before, start, stop, tokenizer)
                if not text.endswith(REPLACEMENT):
                    break
            yield Piece(start, tuple(row.input_ids[start:stop]), text, is_trained, is_special)
            before, start = start, stop


def runs_of(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    """The longest pieces of one kind, trained or not, special or not."""
    before = 0
    for start, stop, is_trained, is_special in _runs(row, tokenizer):
        text = _text(row.input_ids, before, start, stop, tokenizer)
        yield Piece(start, tuple(row.input_ids[start:stop]), text, is_trained, is_special)
        before = start


def _runs(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, int, bool, bool]]:
    """Start, stop, whether trained and whether special."""
    special = tokenizer.added_tokens_decoder

    def kind(at: int) -> tuple[bool, bool]:
        return row.labels[at] != IGNORE_INDEX, row.input_ids[at] in special

    stop = 0
    for (is_trained, is_special), positions in groupby(range(len(row.input_ids)), key=kind):
        start, stop = stop, stop + sum(1 for _ in positions)
        yield start, stop, is_trained, is_special


def _text(input_ids: Sequence[int], before: int, start: int, stop: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Text of the tokens after those from `before` on: SentencePiece takes a space off the first it decodes."""
    context = _decoded(input_ids[before:start], tokenizer)
    whole = _decoded(input_ids[before:stop], tokenizer)
    return whole[len(context) :] if whole.startswith(context) else _decoded(input_ids[start:stop], tokenizer)


def _decoded(input_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(input_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
