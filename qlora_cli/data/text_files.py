"""Bytes and text of a data file: UTF-8 with or without BOM, plain or gzipped; faults name the line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from qlora_cli.errors import DataError, Problem

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where its name ends in .gz.

    Raises:
        DataError: a file that cannot be read, or a broken gzip file, when its broken part is reached.
    """
    is_gzip = path.suffix.lower() == ".gz"
    try:
        with cast("IO[bytes]", gzip.open(path, "rb")) if is_gzip else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"not a whole gzip file ({error})", place=str(path), hint=f"check it with `gzip -t {path}`"
        ) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", place=str(path)) from error


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """The file's text without BOM, line ends as they stand there.

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
    """What to say of a line that is not UTF-8.

    Args:
        error: from decoding the whole line.
        place: of the line.
        name: of its file.
        offset: of the line in its file.
    """
    raw = error.object
    hint = f"save the file as UTF-8, e.g. `iconv -f latin-1 -t UTF-8 {name} > utf8-{name}`"
    if offset == 0 and raw.startswith(UTF16_BOMS):
        hint = hint.replace("latin-1", "UTF-16")
    elif offset == 0 and raw.startswith(GZIP_MAGIC):
        hint = f"the file is gzipped: name it {name}.gz"
    text = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start} is not UTF-8"
    return Problem(text, place, hint)


def empty_file(path: Path) -> DataError:
    """The error for a file without any text."""
    return DataError("the file is empty", place=f"{path}:1", hint="give a file with at least one row")
