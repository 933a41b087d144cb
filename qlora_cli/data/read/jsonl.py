"""Rows of JSON Lines files, each with its line.

Read with the standard library, not with `datasets`: that unifies the rows of a file into one schema (a tool call's
arguments come back padded with nulls), knows no line numbers, and caches by path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qlora_cli.data.example import Place, RawRow, Row
from qlora_cli.data.read.error_text import kind_of, shown
from qlora_cli.data.read.strict_json import JsonError, decode_json
from qlora_cli.data.read.text_files import UTF8_BOM, decoding_problem, empty_file, open_bytes
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.errors import DataError

_SPACE = " \t\r\n\ufeff"
"""May come before a row. Files that were put together by `cat` have their byte order marks inside."""


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """The lines that are not blank, not parsed yet: `parse_line` does that.

    Raises:
        DataError: a file that is empty, cannot be read, or holds an array.
    """
    name = str(path)
    offset = row = 0
    with open_bytes(path) as file:
        for line, raw in enumerate(file, start=1):
            if line == 1:
                offset = len(UTF8_BOM) if raw.startswith(UTF8_BOM) else 0
                raw = raw[offset:]
                _refuse_array(raw, path)
            if raw and not raw.isspace():
                row += 1
                yield RawRow(Place(name, line, row), raw, offset)
            offset += len(raw)
    if not row:
        raise empty_file(path)


def _refuse_array(raw: bytes, path: Path) -> None:
    """Else every line of such a file would be reported for itself."""
    if raw.strip() == b"[":
        raise DataError(
            "broken JSON: one line holds one row, and here it opens an array",
            place=f"{path}:1",
            hint="this is a JSON array over several lines: name the file .json",
        )


def parse_line(raw: bytes, place: Place, offset: int) -> Row:
    """The row that a piece of JSON text holds.

    Args:
        raw: the text, with space around it.
        place: of the row.
        offset: of the text in its file.

    Raises:
        RowError: with the line of the fault, where the row is spread over several.
    """
    try:
        text = raw.rstrip().decode()
    except UnicodeDecodeError as error:
        problem = decoding_problem(error, str(place), Path(place.file).name, offset)
        raise RowError(RejectionReason.MALFORMED, problem.text, place=problem.place, hint=problem.hint) from error
    try:
        value, end = decode_json(text, 0 if text[0] == "{" else len(text) - len(text.lstrip(_SPACE)))
    except JsonError as fault:
        at = place._replace(line=(place.line or 1) + text.count("\n", 0, fault.position))
        raise RowError(RejectionReason.MALFORMED, fault.text, place=str(at), hint=fault.hint) from fault
    if type(value) is not dict:
        text = f"a row must be an object, found {kind_of(value)}"
        hint = "put one {...} on each line, or name the file .json"
        raise RowError(RejectionReason.MALFORMED, text, place=str(place), hint=hint)
    rest = text[end:]
    if rest:
        hint = "put one {...} on each line"
        raise RowError(
            RejectionReason.MALFORMED, f"text after the object: {shown(rest.strip())}", place=str(place), hint=hint
        )
    return value
