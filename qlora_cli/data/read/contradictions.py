"""Columns whose known meaning training would contradict: an answer marked as bad, pictures, a choice not made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from qlora_cli.data.example import Place
from qlora_cli.data.read.error_text import holds_something, shown
from qlora_cli.data.read.preferences import CHOSEN, preference_hint
from qlora_cli.data.rejection import RejectionReason, RowError

_FALSE = (False, "false", "False", "FALSE")
_TRUE = (True, "true", "True", "TRUE")

MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def _is_no(value: Any) -> bool:
    return any(value is other or (isinstance(value, str) and value == other) for other in _FALSE)


def _is_yes(value: Any) -> bool:
    return any(value is other or (isinstance(value, str) and value == other) for other in _TRUE)


def _is_no_whole_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and value != 1


_LABEL = "says that the answer is a bad one, and training would teach it"
_UNTRAINED = "says that the row is not to be trained"
_WEIGHT = "weighs the row, and every row is trained alike"
_MEDIA = "holds what is not text, and only text is trained"
_PAIR = "is the better of two answers, and the recipe does not say whether to train it"

Meaning = tuple[Callable[[Any], bool], str]

MEANINGS: dict[str, Meaning] = {
    **dict.fromkeys(("label", "kto_tag"), (_is_no, _LABEL)),
    **dict.fromkeys(("train", "training", "loss"), (_is_no, _UNTRAINED)),
    **dict.fromkeys(("masked", "mask", "ignore"), (_is_yes, _UNTRAINED)),
    **dict.fromkeys(("weight", "loss_weight", "loss_scale", "sample_weight"), (_is_no_whole_weight, _WEIGHT)),
    **dict.fromkeys(MEDIA, (holds_something, _MEDIA)),
    **dict.fromkeys(CHOSEN, (holds_something, _PAIR)),
}
"""Column -> whether a value of it forbids training the row as it is read, and why."""


@lru_cache(maxsize=4096)
def _meaningful(unread: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(column for column in unread if column in MEANINGS)


def refuse_contradictions(row: Mapping[str, Any], unread: tuple[str, ...], place: Place) -> None:
    """See that no column that is not read forbids to train the row.

    Args:
        row: column -> value.
        unread: columns that no field of its format is read from.
        place: of the row.

    Raises:
        RowError: with the column, its value, and the keys that say what is meant.
    """
    for column in _meaningful(unread):
        forbids, why = MEANINGS[column]
        if forbids(row[column]):
            text = f"the column '{column}' is {shown(row[column])}: it {why}"
            raise RowError(RejectionReason.CONTRADICTED, text, place=str(place), hint=_way_on(row, column))


def _way_on(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    ignore = f"`ignore: [{column}]` if the column is to have no effect"
    if column in CHOSEN:
        return f"{preference_hint(row)}; or write `ignore: [{column}]` to train what is read without it"
    if column in MEDIA:
        return f"write under the source `ignore: [{column}]` to train the text alone"
    if isinstance(value, bool | str):
        said = str(value).lower() if isinstance(value, bool) else value
        return f"write under the source `leave_out: {{{column}: {said}}}` to take such rows out, or {ignore}"
    return f"repeat the rows or give sources a `weight`, and write under the source {ignore}"
