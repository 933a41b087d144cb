"""Errors of a disk that refuses, with what to do: full, over its quota, broken, read-only, not ours.

Libraries report it each in their own way: safetensors and tokenizers as text with "(os error 28)" in it, shutil as a
list of files, Python's files without a path. `naming` makes an OSError with number and path of all of them, where the
path is known; the frame of the command line makes an error with a hint of what is left.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from qlora_cli.console import size_in_words
from qlora_cli.errors import ArgumentError, QloraError, ResourceError
from qlora_cli.run.directory import RunDirectory

REASONS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota (of bytes or of files) is used up", "make room, or ask for a larger one"),
    errno.EFBIG: ("the file is larger than the limit", "raise the limit with `ulimit -f`"),
    errno.EIO: ("the disk reports an input/output error", "look at the disk with `dmesg`"),
    errno.EROFS: ("the file system is read-only", "mount it for writing"),
    errno.EACCES: ("permission is denied", "get the right to write there"),
    errno.EPERM: ("permission is denied", "get the right to write there"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n 4096`"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
    errno.ESTALE: ("the network file system has lost the file", "mount it again"),
}
"""errno -> what is wrong, what to do."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that only a write can get: whatever a library makes of one, the disk is the cause."""

NUMBER = re.compile(r"\(os error (\d+)\)|Os \{ code: (\d+)")
"""The system's error number as Rust's libraries write it, such as safetensors and tokenizers."""

COPY_NUMBER = re.compile(r"\[Errno (\d+)\]")
"""The same as shutil writes it in its list of what could not be copied."""

STAGED = re.compile(r"/\.([^/]+?)\.(?:staging|staged|retired|new)-[0-9a-f]+")
"""A name under which something is written before it gets its own."""


class naming:  # noqa: N801 - reads like a function: `with naming(path):`
    """An error of the system while the block writes below `path` becomes an OSError with its number and a path.

    Args:
        path: named where the fault names none; None for no path.
        way_out: what else can be done where something below `path` cannot be written.
    """

    def __init__(self, path: Path | None, way_out: str = "") -> None:
        self._path = path
        self._way_out = way_out

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        refusal = refusal_in(fault) or (fault if isinstance(fault, OSError) and fault.filename else None)
        if refusal is None:
            return
        if refusal.filename is None and self._path is not None:
            refusal.filename = str(self._path)
        if self._way_out and self._path is not None and _place(refusal).startswith(str(self._path)):
            refusal.add_note(self._way_out)
        if refusal is not fault:
            raise refusal from fault


@contextmanager
def storage_faults(run: RunDirectory) -> Iterator[None]:
    """Turn what the system says while files of `run` are written into an error that says how to continue.

    Raises:
        ResourceError: in place of any OSError, and of other libraries' errors where a system call is behind them.
    """
    try:
        with naming(run.path):
            yield
    except OSError as fault:
        raise resource_error(run, fault) from fault


def resource_error(run: RunDirectory, fault: OSError) -> ResourceError:
    """The user's view of a fault of the disk that ends a run."""
    reason, remedy = REASONS.get(fault.errno or 0, (f"a file cannot be written: {fault.strerror}", "fix that"))
    way_on = f"`{run.resume_command}`" if run.is_started else "start the run again"
    return ResourceError(reason, place=_place(fault) or str(run.path), hint=f"{remedy}, then {way_on}")


def refusal_in(fault: BaseException | None) -> OSError | None:
    """The system's refusal behind a fault, as an OSError with its number; None where there is none.

    >>> refusal_in(RuntimeError("I/O error: No space left on device (os error 28)"))
    OSError(28, 'No space left on device')
    """
    if isinstance(fault, OSError) and fault.errno is not None:
        return fault if fault.errno in REASONS else None
    if fault is None or not isinstance(fault, Exception) or isinstance(fault, QloraError):
        return None
    files = fault.args[0] if isinstance(fault, OSError) and fault.args and isinstance(fault.args[0], list) else None
    found = COPY_NUMBER.search(str(files[0][2])) if files else NUMBER.search(str(fault))
    if found is None:
        return None
    number = int(found[found.lastindex or 0])
    where = [str(files[0][1])] if files else []
    return OSError(number, os.strerror(number), *where)


def disk_error(fault: BaseException) -> QloraError | None:
    """The user's view of a fault that ends a command, if the system's refusal is what is behind it.

    Of an error that is the user's view already, only a full or read-only disk takes the place.
    """
    seen: set[int] = set()
    link: BaseException | None = fault
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, ResourceError):
            return None
        refusal = refusal_in(link)
        if refusal is not None and (not isinstance(fault, QloraError) or refusal.errno in NO_ROOM):
            return _explained(refusal)
        link = link.__cause__ or link.__context__
    return _misplaced(fault) if isinstance(fault, OSError) else None


def _explained(refusal: OSError) -> ResourceError:
    reason, remedy = REASONS.get(refusal.errno or 0, (os.strerror(refusal.errno or 0).lower(), "look at the disk"))
    place = _place(refusal)
    if refusal.errno == errno.ENOSPC and os.path.isabs(place):
        folder = _folder_of(place)
        disk = os.statvfs(folder)
        if disk.f_files and not disk.f_favail and disk.f_bavail:
            reason, remedy = "the disk holds as many files as it can", f"delete some (`df -i {folder}` counts them)"
        else:
            remedy += f" (`df -h {folder}` shows how much there is)"
    return ResourceError(reason, place=place, hint=f"{remedy}{_ways_out(refusal)}, then type the same command again")


def _ways_out(refusal: OSError) -> str:
    notes = dict.fromkeys(getattr(refusal, "__notes__", ()))
    if not notes and f"{os.sep}huggingface{os.sep}" in _place(refusal):
        return ", or name another folder for downloads: HF_HOME=FOLDER"
    if not notes and refusal.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ", or name another place"
    return "".join(f", {note}" for note in notes)


def _place(refusal: OSError) -> str:
    """The file that could not be written, under the name that it would have had."""
    name = refusal.filename2 or refusal.filename
    return final_name(os.fsdecode(name)) if isinstance(name, str | bytes) else ""


def final_name(path: str) -> str:
    """
    >>> final_name("/out/.model.staging-77/config.json")
    '/out/model/config.json'
    """
    return STAGED.sub(r"/\1", path)


def _folder_of(place: str) -> str:
    folder = place
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _misplaced(fault: OSError) -> QloraError | None:
    """A path that cannot be what it is to be, such as a folder below a file."""
    if "No usable temporary directory" in str(fault):  # Python tries a write in each, and reports no number of it
        hint = "make room in one of them, or name another: TMPDIR=FOLDER"
        return ResourceError(f"no folder for temporary files can be written: {fault.strerror}", hint=hint)
    place = _place(fault)
    if not place or fault.errno is None:
        return None
    hint = _ways_out(fault).removeprefix(", or ") or "name another path"
    return ArgumentError(f"{os.strerror(fault.errno).lower()}", place=place, hint=hint)


OTHER_DISK = "make room, or name a folder on another disk with --out"


def refuse_full_disk(folder: Path, num_bytes: int, *, what: str = "the weights take", hint: str = OTHER_DISK) -> None:
    """Refuse what does not fit.

    Args:
        folder: where it is to be written; it, or the folder that it will be in, is there.
        num_bytes: of it.
        what: takes them, in words.
        hint: what to do.

    Raises:
        ResourceError: with the sizes.
    """
    free_bytes = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    if free_bytes < num_bytes:
        raise ResourceError(
            f"the disk is full: {what} {size_in_words(num_bytes)}, and {size_in_words(free_bytes)} are free",
            place=final_name(str(folder)),
            hint=hint,
        )
