"""Writing files and folders so that a reader sees the old content or the new, never half of one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from qlora_cli.progress import progress
from qlora_cli.secrets import redacted

Result = TypeVar("Result")

RENAME_EXCHANGE = 2
AT_FDCWD = -100


SETTINGS = ("*config.json", "*_state.json", "*_merge.json", "*.md")
"""What lies in a model's folder beside weights, vocabulary and template."""


def write_text(path: Path, text: str, *, is_content: bool = False) -> None:
    """Replace the file at `path` by `text` in one rename, durable when this returns.

    Args:
        path: file to write.
        text: secrets in it are taken out.
        is_content: the text is the user's data or a model's answers, and is written as it is.
    """
    staged = path.with_name(f".{path.name}.staged-{os.getpid()}")
    try:
        remove(staged)
        with staged.open("x", encoding="utf-8") as file:  # x: a link that lies there is not written through
            file.write(text if is_content else redacted(text))
        fsync(staged)
        uninterrupted(os.replace, staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(staged)
        raise
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` by `value` as JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A folder to write into; it becomes `out` in one rename when the block ends without an error.

    Whatever ends the block early, what was written is removed and `out` stays as it was. While it is written
    its name starts with a dot and `out`'s name, so that what a killed process left behind can be found; whoever writes
    to the same place next deletes it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _delete_abandoned(out)
    stage = out.with_name(f".{out.name}.staging-{os.getpid()}")
    remove(stage)
    lock = None
    try:
        while lock is None:
            lock = _make_locked(stage)
        yield stage
        take_secrets_out(stage)
        with progress("flushing to the disk"):
            for path in stage.rglob("*"):
                fsync(path)
            fsync(stage)
        _put_in_place(stage, out)
        fsync(out.parent)
    finally:
        with contextlib.suppress(OSError):  # what stays is found by its name
            remove(stage)
        if lock is not None:
            os.close(lock)


def _delete_abandoned(out: Path) -> None:
    """Delete what killed processes were about to put at `out`.

    A folder that is being written is locked by its process. Where folders cannot be locked, as on NFS, all stay.
    """
    for stage in out.parent.glob(f".{glob.escape(out.name)}.staging-*"):
        with contextlib.suppress(OSError):
            lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(stage)
            finally:
                os.close(lock)


def _make_locked(folder: Path) -> int | None:
    """Make a folder and lock it until the descriptor is closed; None if it was taken for abandoned before the lock."""
    uninterrupted(folder.mkdir, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX)
    if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
        return lock
    os.close(lock)
    return None


def take_secrets_out(folder: Path) -> None:
    """Rewrite what libraries wrote or copied into `folder` where it holds a secret, such as a tokenizer's settings."""
    for path in [path for pattern in SETTINGS for path in folder.glob(pattern) if path.is_file()]:
        text = path.read_text("utf-8", errors="replace")
        clean = redacted(text)
        if clean != text:
            write_text(path, clean)


def _put_in_place(stage: Path, out: Path) -> None:
    """Make `stage` become `out`; what was at `out` is then at `stage`, or gone."""
    if not os.path.lexists(out):
        uninterrupted(os.rename, stage, out)
    elif not _exchange(stage, out):
        retired = out.with_name(f".{out.name}.retired-{os.getpid()}")
        try:
            uninterrupted(os.rename, out, retired)
            uninterrupted(os.rename, stage, out)
        except BaseException:
            if os.path.lexists(retired) and not os.path.lexists(out):
                os.rename(retired, out)
            raise
        with contextlib.suppress(OSError):
            remove(retired)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names at once, so that there is no moment without either; False where that is not to be had.

    `renameat2` came with Linux 3.15 and glibc 2.28; NFS and some other file systems do not offer the exchange.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    while rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), str(one), None, str(other))
    return True


def delete_folder(path: Path) -> None:
    """Take a folder out of sight in one rename, then delete it."""
    retired = path.with_name(f".{path.name}.retired-{os.getpid()}")
    remove(retired)
    uninterrupted(os.rename, path, retired)
    remove(retired)


def remove(path: Path) -> None:
    """Delete a file, a link (not what it leads to) or a folder with all that is in it; nothing there is no fault."""
    if path.is_dir() and not path.is_symlink():
        uninterrupted(shutil.rmtree, path)
    else:
        uninterrupted(path.unlink, missing_ok=True)


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
