"""Folders that are complete or absent, and what others put into them stays.

While a folder is written it has a name with its own inode number in it. Only a folder that this project made has such a
name, a copy of it has not, so what a killed process left half written is distinguished from everything else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import filecmp
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from qlora_cli import console
from qlora_cli.errors import ArgumentError
from qlora_cli.progress import progress
from qlora_cli.run.disk_errors import naming
from qlora_cli.run.exchange import exchange
from qlora_cli.run.files import certify, fsync, is_certified, take_secrets_out, uninterrupted
from qlora_cli.run.inventory import (
    Listing,
    changed_files,
    delete_files,
    foreign_entries,
    has_inventory,
    is_plain_file,
    listed_files,
    write_inventory,
)

KEPT = re.compile(r".+\.kept-[0-9]+")
"""Name of what had to give way, as `replaced_folder` keeps it."""

NEW = re.compile(r"\..+\.new-[0-9a-f]{16}")
"""Name of what was made a moment ago."""

NUM_NAMED = 5
"""Entries that a line names of those that stay."""


def refuse_foreign(folder: Path, *, hint: str) -> None:
    """Refuse to replace a folder that this project did not put in place, or files in it that have changed since.

    What others have added to such a folder is not a reason: it stays.

    Raises:
        ArgumentError: naming what would be lost.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return
    if folder.is_symlink() or not has_inventory(folder):
        raise ArgumentError("was not written by qlora, which replaces only what it wrote", place=str(folder), hint=hint)
    for name in changed_files(folder):
        raise ArgumentError("has changed since qlora wrote it", place=str(folder / name), hint=hint)


@contextmanager
def replaced_folder(out: Path, listing: Listing = listed_files) -> Iterator[Path]:
    """A folder to write into; it becomes `out` in one rename when the block ends without an error.

    Whatever ends the block early, what was written is removed and `out` stays as it was. What is in `out` and was
    not written by this project stays too, under its name; where the new folder has that name, under a name beside it.

    Args:
        out: the folder to make or to replace.
        listing: gives the files of `out` that this project wrote. Without another one the new folder gets a list.
    """
    with naming(out):
        uninterrupted(out.parent.mkdir, parents=True, exist_ok=True)
        sweep(out.parent, re.escape(out.name), listing)
        with scratch_folder(out.parent, out.name) as stage:
            yield stage
            take_secrets_out(stage)
            _open_to_readers(stage)
            if listing is listed_files:
                write_inventory(stage)
            put_in_place(stage, out, listing)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder beside what it will become, locked by this process and deleted at the end unless it was renamed."""
    stage, lock = _make_locked(parent, name)
    try:
        yield stage
    finally:
        if is_certified(stage):  # it was not put in place
            with contextlib.suppress(OSError):  # what stays is found by its name
                uninterrupted(shutil.rmtree, stage)
        os.close(lock)


def _make_locked(parent: Path, name: str) -> tuple[Path, int]:
    new = parent / f".{name}.new-{secrets.token_hex(8)}"
    uninterrupted(new.mkdir)
    lock = os.open(new, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # NFS
            fcntl.flock(lock, fcntl.LOCK_EX)
        return certify(new, f".{name}.staging"), lock
    except FileNotFoundError:  # another process swept it before it was locked
        os.close(lock)
        return _make_locked(parent, name)
    except BaseException:
        os.close(lock)
        with contextlib.suppress(OSError):
            new.rmdir()
        raise


def put_in_place(stage: Path, out: Path, listing: Listing) -> None:
    """Make `stage` become `out`, with what others put there, durable when this returns."""
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir()):
        uninterrupted(os.rename, out, _name_beside(out, out))
    own = listing(out) if out.is_dir() else set()
    with progress("flushing to the disk"):
        for path in stage.rglob("*"):
            fsync(path)
    stays = _carry_over(out, stage, own)
    fsync(stage)
    old = _exchange_or_move(stage, out)
    fsync(out.parent)
    if old is not None:
        with contextlib.suppress(OSError):  # what stays is found by its name
            _delete_replaced(old, out, own)
    if stays:
        console.note(f"kept in {out}, not written by qlora: {named(stays)}")


def named(names: list[str]) -> str:
    """
    >>> named(["a", "b", "c", "d", "e", "f", "g"])
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


def _carry_over(out: Path, stage: Path, own: Set[str]) -> list[str]:
    """Give what others put into `out` a second name in `stage`.

    Nothing is moved: at every moment each of these files is at its place in `out`.

    Returns:
        What was carried, as `foreign_entries` names it.
    """
    names = foreign_entries(out, own)
    for name in names:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        _link(out / name, stage / name)
    return names


def _link(source: Path, target: Path) -> None:
    """Make `target` the same file, link or tree of folders as `source`; beside what has that name already."""
    if source.is_dir() and not source.is_symlink():
        if os.path.lexists(target) and not target.is_dir():
            target = _name_beside(source, target)
        target.mkdir(exist_ok=True)
        for entry in list(source.iterdir()):
            _link(entry, target / entry.name)
        shutil.copystat(source, target)
        return
    if os.path.lexists(target):
        target = _name_beside(source, target)
    try:
        uninterrupted(os.link, source, target, follow_symlinks=False)
    except OSError as fault:  # no second names on exFAT and some network file systems
        if fault.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS):
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def _is_same(one: Path, other: Path) -> bool:
    """Whether both are the same file, or are copies of each other."""
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    if one.is_dir() or other.is_dir():
        return one.is_dir() and other.is_dir()
    return one.exists() and other.exists() and (os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False))


def _delete_replaced(old: Path, out: Path, own: Set[str]) -> None:
    """Delete what was at `out`: the files of `own`, and those that are at `out` as well."""
    carried = {
        path.relative_to(old).as_posix()
        for path in old.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and _is_same(path, out / path.relative_to(old))
    }
    delete_files(old, own | carried)
    for path in sorted(old.rglob("*"), reverse=True) if old.is_dir() else ():
        if path.is_dir() and not path.is_symlink() and (out / path.relative_to(old)).is_dir():
            with contextlib.suppress(OSError):
                uninterrupted(path.rmdir)
    with contextlib.suppress(OSError):
        uninterrupted(old.rmdir)


def _name_beside(source: Path, target: Path) -> Path:
    kept = _free_name(target)
    console.warn(f"{source} was not written by qlora: it is kept as {kept.name}")
    return kept


def _free_name(path: Path) -> Path:
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.kept-{number}")):
        number += 1
    return kept


def _exchange_or_move(stage: Path, out: Path) -> Path | None:
    """Make `stage` become `out`; returns where that which was at `out` is then, None where there was nothing."""
    if not os.path.lexists(out):
        uninterrupted(os.rename, stage, out)
        return None
    if exchange(stage, out):
        return stage
    retired = out.with_name(f".{out.name}.staging-{out.stat().st_ino + 1}")  # not certified
    try:
        uninterrupted(os.rename, out, retired)
        uninterrupted(os.rename, stage, out)
    except BaseException:
        if os.path.lexists(retired) and not os.path.lexists(out):
            os.rename(retired, out)
        raise
    return retired


def sweep(parent: Path, pattern: str, listing: Listing = listed_files) -> None:
    """Delete what killed processes were writing in `parent`, or had not yet deleted.

    A folder that is being written is locked by its process. Where folders cannot be locked, as on NFS, all stay.

    Args:
        pattern: regular expression of the names that were to be replaced.
        listing: gives the files of such a folder that this project wrote.
    """
    left = re.compile(rf"\.(?P<name>{pattern})\.(?:(?:staging|staged|retired)-[0-9]+|new-[0-9a-f]{{16}})")
    for entry in list(parent.iterdir()) if parent.is_dir() else ():
        name = left.fullmatch(entry.name)
        if name and not entry.is_symlink():
            with contextlib.suppress(OSError):
                _delete_abandoned(entry, parent / name["name"], listing)


def _delete_abandoned(entry: Path, out: Path, listing: Listing) -> None:
    if entry.is_file():
        if is_leftover(entry):
            uninterrupted(entry.unlink)
        return
    lock = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_certified(entry):
            uninterrupted(shutil.rmtree, entry)
        else:  # it may be what was at `out` before, or empty
            _delete_replaced(entry, out, listing(entry))
    finally:
        os.close(lock)


def is_leftover(file: Path) -> bool:
    """Whether a killed process was writing this file: certified, or so new that it is empty and not certified yet."""
    return is_certified(file) or (NEW.fullmatch(file.name) is not None and not file.stat().st_size)


def delete_folder(folder: Path, own: Set[str]) -> bool:
    """Delete the files of `own` from a folder, all together where nothing else is in it; whether it is gone.

    Args:
        own: relative to `folder`; each is a plain file.
    """
    if foreign_entries(folder, own):
        return delete_files(folder, own)
    retired = certify(folder, f".{folder.name}.retired")
    uninterrupted(shutil.rmtree, retired)
    return True


def _open_to_readers(folder: Path) -> None:
    """Let others read what libraries wrote for the owner alone, as far as the umask does: a server is another user."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*"):
        if is_plain_file(folder, path.relative_to(folder).as_posix()):
            uninterrupted(path.chmod, 0o666 & ~mask)
