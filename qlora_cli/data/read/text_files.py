"""Bytes and text of a data file: UTF-8 with or without BOM, plain or gzipped; faults name the line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from qlora_cli.errors import DataError, Problem

UTF8_BOM = b"\xef\xbb\xbf"
GZIP_FAULTS = (gzip.BadGzipFile, EOFError, zlib.error)
GZIP_MAGIC = b"\x1f\x8b"

_UTF_16 = ("UTF-16 text, not UTF-8", "save it as UTF-8, e.g. `iconv -f UTF-16 -t UTF-8 {name} > utf8-{name}`")
_UTF_32 = ("UTF-32 text, not UTF-8", "save it as UTF-8, e.g. `iconv -f UTF-32 -t UTF-8 {name} > utf8-{name}`")
OTHER_KINDS = {
    b"\xff\xfe\x00\x00": _UTF_32,
    b"\x00\x00\xfe\xff": _UTF_32,
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    GZIP_MAGIC: ("gzipped, and its name does not say so", "name it {name}.gz"),
    b"PK\x03\x04": ("a zip archive (.zip, .xlsx)", "unpack it, or export the table as .csv"),
    b"PAR1": ("a Parquet file", "let its name end in .parquet"),
}
"""First bytes -> what a file is that is named as text, and what to do. Else each of its lines would be reported."""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where its name ends in .gz.

    Raises:
        DataError: a file that cannot be read, or is of another kind by its first bytes; a broken gzip file, when its
            broken part is reached, at the line up to which it can be unpacked.
    """
    is_gzip = path.suffix.lower() == ".gz"
    try:
        with cast(BufferedReader, gzip.open(path, "rb")) if is_gzip else path.open("rb") as file:
            _refuse_other_kinds(file.peek(4), path)
            yield file
    except GZIP_FAULTS as error:
        raise DataError(
            f"not a complete gzip file ({error})",
            place=f"{path}:{_num_line_ends(path) + 1}",
            hint=f"check it with `gzip -t {path}`",
        ) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", place=str(path)) from error


def _refuse_other_kinds(start: bytes, path: Path) -> None:
    for magic, (kind, hint) in OTHER_KINDS.items():
        if not start.startswith(magic):
            continue
        if magic == GZIP_MAGIC and path.suffix.lower() == ".gz":
            kind, hint = "gzipped twice", "unpack it once: `gunzip {name}`"
        raise DataError(f"the file is {kind}", place=f"{path}:1", hint=hint.format(name=path.name))


def _num_line_ends(path: Path) -> int:
    """Line ends in the part of a broken gzip file that can be unpacked."""
    num_line_ends = 0
    try:
        with gzip.open(path, "rb") as file:
            while piece := file.read1(512):  # what a piece unpacks before its fault is lost
                num_line_ends += piece.count(b"\n")
    except GZIP_FAULTS:
        pass
    return num_line_ends


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """The file's text without BOM, line ends as they are.

    Raises:
        DataError: as `open_bytes`, and at the line of the first byte that is not UTF-8.
    """
    with open_bytes(path) as file:
        try:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        except UnicodeDecodeError as error:
            raise _first_decoding_fault(path) from error


def _first_decoding_fault(path: Path) -> DataError:
    """The decoder knows the byte only within its piece of the file, so the file is read again up to it."""
    offset = 0
    with open_bytes(path) as file:
        for line, raw in enumerate(file, start=1):
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                return DataError([decoding_problem(error, f"{path}:{line}", path.name, offset)])
            offset += len(raw)
    return DataError("the file was changed while it was read", place=str(path))


def decoding_problem(error: UnicodeDecodeError, place: str, name: str, offset: int) -> Problem:
    """The problem of a line that is not UTF-8.

    Args:
        error: from decoding the whole line.
        place: of the line.
        name: of its file.
        offset: of the line in its file.
    """
    unpacked = name.removesuffix(".gz")
    hint = f"save the file as UTF-8, e.g. `iconv -f latin-1 -t UTF-8 {unpacked} > utf8-{unpacked}`"
    text = f"byte 0x{error.object[error.start]:02x} at offset {offset + error.start} is not UTF-8"
    return Problem(text, place, hint)


def empty_file(path: Path) -> DataError:
    """The error for a file without any text."""
    return DataError("the file is empty", place=f"{path}:1", hint="give a file with at least one row")
