"""Rows of a CSV file with a header, each with the line it starts on.

Read with the standard library: `datasets` guesses types (the answer "007" comes back as 7) and knows no lines.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from qlora_cli.data.example import Place, RawRow, UnreadableRow
from qlora_cli.data.read.error_text import shown
from qlora_cli.data.read.text_files import empty_file, open_text
from qlora_cli.errors import DataError

MAX_FIELD_CHARS = 1 << 27
"""The module's own limit, 128 KiB, is shorter than long documents. A quote that is never closed takes up the rest of
the file, so there is one: 128 Mi characters."""


def read_csv(path: Path) -> Iterator[RawRow]:
    """Rows as column -> text; a quoted field may hold line ends. Rows that do not fit the header are unreadable.

    Raises:
        DataError: a header or quoting that cannot be understood, or no rows.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    name = str(path)
    header: list[str] = []
    line, row = 1, 0
    with open_text(path) as file:
        reader = csv.reader(file, strict=True)
        while (fields := _next_fields(reader, f"{path}:{line}")) is not None:
            if not fields or (not header and fields[0].isspace() and len(fields) == 1):
                pass
            elif not header:
                header = [name.strip() for name in fields]
                _check_header(header, f"{path}:{line}")
            else:
                row += 1
                fits = len(fields) == len(header)
                payload = dict(zip(header, fields, strict=True)) if fits else _unreadable(fields, len(header))
                yield RawRow(Place(name, line, row), payload)
            line = reader.line_num + 1
    if not header:
        raise empty_file(path)
    if not row:
        raise DataError("the file has a header and no rows", place=f"{path}:1")


def _next_fields(reader: Iterator[list[str]], place: str) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(f"broken CSV: {error}", place=place, hint="is a double quote never closed?") from error


def _unreadable(fields: Sequence[str], num_columns: int) -> UnreadableRow:
    content = io.StringIO()
    csv.writer(content, lineterminator="").writerow(fields)
    return UnreadableRow(
        f"{len(fields)} fields where the header names {num_columns}",
        'put fields that hold commas or line ends in double quotes, and write " inside as ""',
        content.getvalue(),
    )


def _check_header(header: list[str], place: str) -> None:
    if "" in header:
        raise DataError(
            f"column {header.index('') + 1} of the header has no name", place=place, hint="name every column"
        )
    duplicates = sorted(name for name, count in Counter(header).items() if count > 1)
    if duplicates:
        raise DataError(f"column {shown(duplicates[0])} occurs twice in the header", place=place)
    if len(header) == 1:
        for separator in (";", "\t"):
            if separator in header[0]:
                raise DataError(
                    f"the header is separated by {separator!r}, not by commas",
                    place=place,
                    hint="export the table with commas",
                )
