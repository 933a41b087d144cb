"""A row of data before it is tokens: a conversation or plain text, with the place it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

Message = dict[str, Any]
"""One turn as chat templates read it: `role`, `content`, and where they apply `tool_calls`, `name`, ..."""


class Place(NamedTuple):
    """Place of a row, as errors and previews name it.

    >>> str(Place("train.jsonl", line=3, row=3)), str(Place("train.parquet", line=None, row=7))
    ('train.jsonl:3', 'train.parquet#row 7')
    """

    file: str
    """Path as the recipe gives it, or Hub id."""

    line: int | None
    """Line on which the row starts, from 1; None where the source has no lines."""

    row: int
    """Number of the row in its source, from 1."""

    def __str__(self) -> str:
        return f"{self.file}#row {self.row}" if self.line is None else f"{self.file}:{self.line}"


Row = dict[str, Any]
"""Column -> value, as the source holds it."""


class UnreadableRow(NamedTuple):
    """A row that its reader could not parse, though it could read those after it."""

    text: str
    """The fault."""

    hint: str
    content: str
    """The row as the file has it."""


class RawRow(NamedTuple):
    """A row before it is parsed, so that parsing can be spread over processes."""

    place: Place
    payload: bytes | Row | UnreadableRow
    """The JSON text of one row as it is in its file; other kinds of source come parsed."""

    offset: int = 0
    """Of a line in its file, for messages that name a byte."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that the chat template renders; which of them are trained, `data.train_on` says."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    """JSON schemas of the tools that the assistant may call."""

    place: Place


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text outside any chat template; `completion` is trained and an end-of-sequence token follows it."""

    prompt: str
    """Not trained; empty for running text."""

    completion: str
    place: Place


Example = Conversation | PlainText
