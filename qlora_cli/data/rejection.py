"""Why a row is not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qlora_cli.data.example import Place, Row
from qlora_cli.errors import DataError, Problem


class RejectionReason(StrEnum):
    """Reason why a row is rejected; the value is its name in tables and `rejected.jsonl`."""

    MALFORMED = "not readable"
    FORMAT = "does not fit its format"
    CONTRADICTED = "a column forbids training the row"
    EMPTY_ANSWER = "empty answer"
    NO_ANSWER = "does not end with an answer"
    TEMPLATE = "refused by the chat template"
    UNPRINTED = "not printed by the chat template"
    NOTHING_TRAINED = "nothing to learn"
    TOO_LONG = "longer than max_length"
    LEFT_OUT = "left out by leave_out"
    REQUIRED = "a required column is empty"
    TOO_SHORT = "answer shorter than min_chars"
    TOO_MANY_CHARS = "answer longer than max_chars"
    EXACT_DUPLICATE = "exact duplicate"
    NEAR_DUPLICATE = "near duplicate"
    HELD_OUT_COPY = "copy of a held-out row"


class RowError(DataError):
    """A fault of one row, with the cause that it counts under."""

    def __init__(self, cause: RejectionReason, text: str, *, place: str = "", hint: str = "") -> None:
        super().__init__(text, place=place, hint=hint)
        self.cause = cause


@dataclass(frozen=True)
class Rejection:
    """A row that is not trained on, and why."""

    place: Place
    cause: RejectionReason
    text: str
    """The fault of this row, with the value seen."""

    hint: str
    row: Row | str
    """As it was read; its text where it could not be parsed; empty where it is no longer available."""

    @property
    def problem(self) -> Problem:
        """The rejection as an error shows it."""
        return Problem(self.text, str(self.place), self.hint)
