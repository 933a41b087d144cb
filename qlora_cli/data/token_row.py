"""One document as tokens with labels; what packing, collation and training work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Place


class Unprinted(NamedTuple):
    """A kind of text that the chat template leaves out of a row by design, or prints too late."""

    what: str
    hint: str


@dataclass(slots=True)
class TokenRow:
    """One document as tokens."""

    input_ids: list[int]
    labels: list[int]
    """The token itself where it is trained, else IGNORE_INDEX; as long as `input_ids`, not shifted."""

    place: Place
    unprinted: tuple[Unprinted, ...] = ()
    """Texts that the chat template left out."""

    has_special_text: bool = False
    """Whether the conversation spells a special token, such as `</s>`; it is tokenized as text."""

    @property
    def num_trained_tokens(self) -> int:
        """Tokens that carry a label."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


def mask_labels(input_ids: list[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Labels that teach the tokens inside the spans; never the first token, which nothing predicts.

    >>> mask_labels([5, 6, 7, 8, 2], spans=[(3, 5)])
    [-100, -100, -100, 8, 2]
    >>> mask_labels([5, 6], spans=[(0, 2)])
    [-100, 6]
    """
    labels = [IGNORE_INDEX] * len(input_ids)
    for start, end in spans:
        labels[start:end] = input_ids[start:end]
    if labels:
        labels[0] = IGNORE_INDEX
    return labels
