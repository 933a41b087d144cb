"""Text of a data file: UTF-8 with or without BOM, plain or gzipped; faults name the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from qlora_cli.errors import DataError

UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def _open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where its name ends in .gz."""
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


def decode_utf8(raw: bytes, path: Path, *, line: int = 1, offset: int = 0) -> str:
    """`raw` as text without BOM; `line` and `offset` are where it starts in the file.

    Raises:
        DataError: at the line of the first byte that is not UTF-8, with its offset in the file.
    """
    try:
        return raw.removeprefix(UTF8_BOM).decode() if offset == 0 else raw.decode()
    except UnicodeDecodeError as error:
        num_bom_bytes = len(UTF8_BOM) if offset == 0 and raw.startswith(UTF8_BOM) else 0
        position = error.start + num_bom_bytes
        line += raw.count(b"\n", 0, position)
        encoding = "UTF-16" if offset == 0 and raw.startswith(UTF16_BOMS) else "latin-1"
        raise DataError(
            f"byte 0x{raw[position]:02x} at offset {offset + position} is not UTF-8",
            place=f"{path}:{line}",
            hint=f"save the file as UTF-8, e.g. `iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}`",
        ) from error


def read_text(path: Path) -> str:
    """The whole file as text.

    Raises:
        DataError: not UTF-8, not readable, or empty.
    """
    with _open_bytes(path) as file:
        text = decode_utf8(file.read(), path)
    if not text.strip():
        raise DataError("the file is empty", place=f"{path}:1", hint="give a file with at least one row")
    return text


def read_lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Each line that is not blank: its number from 1, its bytes, and its offset in the file."""
    offset = 0
    with _open_bytes(path) as file:
        for line, raw in enumerate(file, start=1):
            if raw.strip() and raw.strip() != UTF8_BOM:
                yield line, raw, offset
            offset += len(raw)
