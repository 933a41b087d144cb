"""Writing files and folders so that a reader sees the old content or the new, never half of one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` in one rename, durable when this returns."""
    staged = path.with_name(f".{path.name}.staged-{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    fsync(staged)
    os.replace(staged, path)
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` by `value` as JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A folder to write into; it becomes `out` in one rename when the block ends without an error.

    Whatever ends the block early, what was written is removed and `out` stays as it was. While it is written
    its name starts with a dot and `out`'s name, so that what a killed process left behind can be found.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.with_name(f".{out.name}.staging-{os.getpid()}")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        for path in stage.rglob("*"):
            fsync(path)
        fsync(stage)
        retired = out.with_name(f".{out.name}.retired-{os.getpid()}")
        if out.exists():
            os.rename(out, retired)
        os.rename(stage, out)
        fsync(out.parent)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def delete_folder(path: Path) -> None:
    """Take a folder out of sight in one rename, then delete it."""
    retired = path.with_name(f".{path.name}.retired-{os.getpid()}")
    os.rename(path, retired)
    shutil.rmtree(retired)


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
