"""Writing files so that a reader sees the old content or the new, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.run.disk_errors import naming
from qlora_cli.secrets import redacted
from qlora_cli.web_page import GENERATOR

Result = TypeVar("Result")

MAX_JSON_BYTES = 16 * 1024 * 1024
"""Files of that kind that this project writes take kilobytes."""

SETTINGS = ("*config.json", "*_state.json", "*_merge.json", "*.md")
"""Files in a model's folder beside weights, vocabulary and template."""


def write_text(path: Path, text: str, *, is_content: bool = False) -> None:
    """Replace the file at `path` by `text` in one rename, durable when this returns.

    Args:
        path: file to write.
        text: secrets in it are taken out.
        is_content: the text is the user's data or a model's answers, and is written as it is.
    """
    with naming(path):
        _write_text(path, text if is_content else redacted(text))


def _write_text(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}.new-{secrets.token_hex(8)}")
    try:
        with staged.open("x", encoding="utf-8") as file:
            staged = certify(staged, f".{path.name}.staged")
            file.write(text)
        fsync(staged)
        uninterrupted(os.replace, staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` by `value` as JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json_object(path: Path, *, hint: str) -> dict[str, Any]:
    """The JSON object in a file that this project wrote.

    Raises:
        IdentityError: if the file is missing or holds something else.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise IdentityError("is not a file", place=str(path), hint=hint)
        if path.stat().st_size > MAX_JSON_BYTES:
            raise IdentityError(f"is larger than {MAX_JSON_BYTES:,} bytes", place=str(path), hint=hint)
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise IdentityError(f"cannot be read: {fault}", place=str(path), hint=hint) from fault
    except RecursionError as fault:
        raise IdentityError("cannot be read: it is nested too deeply", place=str(path), hint=hint) from fault
    if not isinstance(value, dict):
        raise IdentityError(f"must hold a JSON object, not {type(value).__name__}", place=str(path), hint=hint)
    return value


def refuse_foreign_page(path: Path) -> None:
    """Refuse to write a page over a file that is none of this project's pages.

    Raises:
        ArgumentError: if there is such a file.
    """
    if os.path.lexists(path) and not is_own_page(path):
        raise ArgumentError(
            "is there already and was not written by qlora", place=str(path), hint="choose another name"
        )


def is_own_page(path: Path) -> bool:
    """Whether a file is a page that this project wrote; a link to one is not."""
    return path.is_file() and not path.is_symlink() and GENERATOR in _beginning(path)


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(1024).decode("utf-8", "replace")


def take_secrets_out(folder: Path) -> None:
    """Rewrite what libraries wrote or copied into `folder` where it holds a secret, such as a tokenizer's settings."""
    for path in [path for pattern in SETTINGS for path in folder.glob(pattern) if path.is_file()]:
        text = path.read_text("utf-8", errors="replace")
        clean = redacted(text)
        if clean != text:
            write_text(path, clean)


def certify(path: Path, name: str) -> Path:
    """Rename a file or folder that this process has just made to `name`, its inode number at the end.

    Such a name shows later that it was made here: nothing else has it, and a copy of it has another inode.
    """
    certified = path.with_name(f"{name}-{path.lstat().st_ino}")
    uninterrupted(os.rename, path, certified)
    return certified


def is_certified(path: Path) -> bool:
    """Whether the number at the end of the name is the inode's, as `certify` leaves it."""
    try:
        return path.name.rpartition("-")[2] == str(path.lstat().st_ino)
    except FileNotFoundError:
        return False


def uninterrupted(call: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call again whenever a signal interrupts the system call, as Python itself does for reads, writes and fsync."""
    while True:
        try:
            return call(*arguments, **options)
        except InterruptedError:
            continue


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
