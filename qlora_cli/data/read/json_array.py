"""Rows of a .json file, each with the line it starts on, without the file in memory.

The file is an array of objects, or objects one after the other. It is read in pieces; a row that is cut off at the
end of a piece is tried again with more text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qlora_cli.data.example import Place, RawRow, UnreadableRow
from qlora_cli.data.read.error_text import kind_of
from qlora_cli.data.read.strict_json import TOO_DEEP
from qlora_cli.data.read.text_files import empty_file, open_text
from qlora_cli.errors import DataError

PIECE_CHARS = 1 << 20

_SPACE = re.compile(r"[ \t\r\n]*")
_MAX_TOKEN_CHARS = 16
"""Longer than `-Infinity` and `\\ud83d\\ude42`: what a cut can break, besides strings, stands this close to it."""

_CUT_OFF = "is the file cut off?"

# Only finds where a value ends; what it takes and training cannot is refused when the row is parsed.
_FINDER = json.JSONDecoder(parse_int=float)


def read_json(path: Path) -> Iterator[RawRow]:
    """The objects of the file, not parsed yet: `jsonl.parse_line` does that.

    Raises:
        DataError: with the line from which on the file cannot be understood.
    """
    with open_text(path) as file:
        text = _Window(file, str(path))
        opening = text.next_char()
        if not opening:
            raise empty_file(path)
        if opening == "[":
            yield from _array(text)
        elif opening == "{":
            yield from _objects(text)
        else:
            value, _ = text.find_value()
            raise text.fault(
                f"the file must hold an array of objects, found {kind_of(value)}",
                "write [{...}, {...}], or one {...} a line in a .jsonl file",
            )


class _Window:
    """The part of a text around the position that is being read."""

    def __init__(self, file: IO[str], name: str) -> None:
        self.text = ""
        self.position = 0
        self._file = file
        self._name = name
        self._is_whole = False
        """Whether `text` reaches to the end of the file."""

        self._line = 1
        self._counted = 0
        """`_line` is the line of this position."""

        self._column = 0
        """Characters before `text` in its first line."""

        self._num_rows = 0

    def next_char(self) -> str:
        """The character after any space, which becomes the position; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.position)
            assert space is not None  # the pattern matches nothing, too
            self.position = space.end()
            if self.position < len(self.text) or not self._grow():
                return self.text[self.position : self.position + 1]

    def find_value(self) -> tuple[Any, int]:
        """The value at the position, and where it ends.

        Raises:
            DataError: if there is none, or it is broken.
        """
        while True:
            try:
                value, end = _FINDER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                is_unterminated = error.msg.startswith("Unterminated string")
                is_near_end = error.pos > len(self.text) - _MAX_TOKEN_CHARS
                if (is_unterminated or is_near_end) and self._grow():
                    continue
                is_cut_off = is_unterminated or not self.text[error.pos :].strip()
                line_start = self.text.rfind("\n", 0, error.pos) + 1
                column = error.pos - line_start + 1 + (0 if line_start else self._column)
                raise self.fault(
                    f"broken JSON: {error.msg} (column {column})",
                    _CUT_OFF if is_cut_off else "JSON needs double quotes, no trailing comma and no comments",
                    at=error.pos,
                ) from error
            except RecursionError as error:
                raise self.fault(TOO_DEEP) from error
            if end < len(self.text) or self.text[end - 1] in '}]"' or not self._grow():
                return value, end

    def take_row(self) -> RawRow:
        """The value at the position, as the next row."""
        value, end = self.find_value()
        start, self.position = self.position, end
        self._num_rows += 1
        place = Place(self._name, self.line_at(start), self._num_rows)
        text = self.text[start:end]
        if type(value) is dict:
            return RawRow(place, text.encode())
        return RawRow(place, UnreadableRow(f"a row must be an object, found {kind_of(value)}", "", text))

    def line_at(self, position: int) -> int:
        """The line of a position that is not before the one asked for last."""
        self._line += self.text.count("\n", self._counted, position)
        self._counted = position
        return self._line

    def fault(self, text: str, hint: str = "", at: int | None = None) -> DataError:
        """The error for the text at the position."""
        line = self.line_at(self.position if at is None else at)
        return DataError(text, place=f"{self._name}:{line}", hint=hint)

    def _grow(self) -> bool:
        """Read on and forget what is behind the position; False at the end of the file.

        Reads as much as is there already, so that a long row is tried a few times and not once for each piece.
        """
        if self._is_whole:
            return False
        piece = self._file.read(max(PIECE_CHARS, len(self.text) - self.position))
        if not piece:
            self._is_whole = True
            return False
        self.line_at(self.position)
        line_start = self.text.rfind("\n", 0, self.position) + 1
        self._column = self.position - line_start + (0 if line_start else self._column)
        self.text = self.text[self.position :] + piece
        self.position = self._counted = 0
        return True


def _array(text: _Window) -> Iterator[RawRow]:
    text.position += 1
    if text.next_char() == "]":
        raise text.fault("the array holds no rows")
    while True:
        start = text.next_char()
        if start == "]":
            raise text.fault("trailing comma before ]", "delete the last comma")
        if start:
            yield text.take_row()
        separator = text.next_char()
        if separator == "]":
            break
        if not separator:
            raise text.fault("the array never closes", _CUT_OFF)
        if separator != ",":
            raise text.fault(f"expected , or ] after the row, found {separator!r}")
        text.position += 1
    text.position += 1
    if text.next_char():
        raise text.fault("text after the closing ]")


def _objects(text: _Window) -> Iterator[RawRow]:
    while start := text.next_char():
        if start == ",":
            raise text.fault(
                "a comma between rows that are in no array", "put [ before the first row, ] behind the last"
            )
        yield text.take_row()
