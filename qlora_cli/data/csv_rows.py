"""Rows of a CSV file with a header, each with the line it starts on.

Read with the standard library: `datasets` guesses types (the answer "007" comes back as 7) and knows no lines.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from qlora_cli.data.example import Place
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.text_files import read_text
from qlora_cli.errors import DataError

MAX_FIELD_CHARS = 2**31 - 1  # the module's own limit, 128 KiB, is shorter than long documents


def read_csv(path: Path) -> list[tuple[Place, dict[str, Any]]]:
    """Rows as column -> text; a quoted field may hold line ends.

    Raises:
        DataError: a header or rows that do not fit, all of them (the first 20 in full).
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    rows: list[tuple[Place, dict[str, Any]]] = []
    problems = RowProblems()
    line = 1
    try:
        for fields in reader:
            if not fields:
                pass
            elif header is None:
                header = fields
                _check_header(header, f"{path}:{line}")
            elif len(fields) != len(header):
                problems.add(
                    f"{len(fields)} fields where the header names {len(header)}",
                    f"{path}:{line}",
                    'put fields that hold commas or line ends in double quotes, and write " inside as ""',
                )
            else:
                place = Place(str(path), line, len(rows) + 1)
                rows.append((place, dict(zip(header, fields, strict=True))))
            line = reader.line_num + 1
    except csv.Error as error:
        problems.add(f"broken CSV: {error}", f"{path}:{line}", "is a double quote never closed?")
    if not rows:
        problems.add("the file has a header and no rows", f"{path}:1")
    problems.raise_if_any()
    return rows


def _check_header(header: list[str], place: str) -> None:
    names = [name.strip() for name in header]
    if "" in names:
        raise DataError(
            f"column {names.index('') + 1} of the header has no name", place=place, hint="name every column"
        )
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise DataError(f"column '{duplicates[0]}' stands twice in the header", place=place)
    if len(header) == 1:
        for separator in (";", "\t"):
            if separator in header[0]:
                raise DataError(
                    f"the header is separated by {separator!r}, not by commas",
                    place=place,
                    hint="export the table with commas",
                )
