"""A conversation kept as a row that `qlora train` reads, in a file of such rows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from qlora_cli.data.example import Message, Place
from qlora_cli.data.read.converters import FORMATS
from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.run.disk_errors import naming

LARGEST_BYTES = 64 * 1024 * 1024
"""A file that is larger is not read through to add a row to it."""

ANOTHER = "name a file that is not there yet"


def save_conversation(path: Path, messages: Sequence[Message]) -> int:
    """Add a row in the `messages` format to a file; a file that is there must hold such rows and nothing else.

    Returns:
        Number of the row, from 1.

    Raises:
        ArgumentError: if the file holds something else or is too large; it stays as it is.
        OSError: if it cannot be written; what was there stays as it was.
    """
    line = json.dumps({"messages": list(messages)}, ensure_ascii=False) + "\n"
    with naming(path):
        if not os.path.lexists(path):
            with path.open("x", encoding="utf-8") as file:
                file.write(line)
            return 1
        num_rows, is_ended = _rows_in(path)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size)
            try:
                file.write((line if is_ended else f"\n{line}").encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise
    return num_rows + 1


def _rows_in(path: Path) -> tuple[int, bool]:
    """How many rows a file holds, and whether the last one ends with a line break.

    Raises:
        ArgumentError: at the first line that is no row of messages.
    """
    if not path.is_file():
        raise ArgumentError("is not a file that rows can be added to", place=str(path), hint=ANOTHER)
    if path.stat().st_size > LARGEST_BYTES:
        raise ArgumentError(f"is larger than {LARGEST_BYTES:,} bytes", place=str(path), hint=ANOTHER)
    content = path.read_bytes()
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise ArgumentError("holds something else than text", place=str(path), hint=ANOTHER) from None
    rows = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, line in rows:
        if not _is_row(line, number, path):
            raise ArgumentError(
                "is no row of messages, so nothing is added to this file", place=f"{path}:{number}", hint=ANOTHER
            )
    return len(rows), not content or content.endswith(b"\n")


def _is_row(line: str, number: int, path: Path) -> bool:
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or "messages" not in row:
            return False
        FORMATS["messages"].convert(row, Place(str(path), number, number))
    except (ValueError, RecursionError, DataError):
        return False
    return True
