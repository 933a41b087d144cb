"""Inventory of the files of a folder that this project wrote: only those are ever deleted or replaced.

A folder that is put in place holds a list of its files, each with a fingerprint. A file that is not listed, or that has
changed since, is somebody else's. Checkpoints have such a list in checkpoint.json.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path, PurePosixPath
from typing import Any

from qlora_cli.run.files import fsync, uninterrupted, write_json

INVENTORY_NAME = ".qlora_files.json"
MARKER = {"written_by": "qlora"}
"""In a JSON object that marks a folder as this project's."""

MAX_BYTES = 64 * 1024 * 1024
"""Longest list that is read: it has some 100 bytes a file."""

SAMPLE_BYTES = 64 * 1024
NUM_SAMPLES = 64

SEAL_NAME = "checkpoint.json"
CHECKPOINT_FILES = re.compile(
    r"checkpoint\.json|adapter_(?:model\.safetensors|config\.json)|README\.md|processes\.json|trainer_state\.json"
    r"|(?:optimizer|scheduler|scaler|random(?:-[0-9]+)?)\.(?:safetensors|json)"
)
"""Names of files that checkpoints have; what is left of one whose checkpoint.json is damaged is known by them."""

Listing = Callable[[Path], Set[str]]
"""Gives the files of a folder that this project wrote, relative to it with forward slashes."""


def write_inventory(folder: Path) -> None:
    """List every file below `folder` in `folder/.qlora_files.json`."""
    files = {name: fingerprint_file(folder / name) for name in _file_names(folder) if name != INVENTORY_NAME}
    write_json(folder / INVENTORY_NAME, {**MARKER, "files": files})


def fingerprint_file(path: Path) -> str:
    """SHA-256 over a file's size and content; of one above 4 MiB, over 64 evenly spaced blocks of 64 KiB.

    Two trainings differ in almost every weight, so samples distinguish their files.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        if size <= SAMPLE_BYTES * NUM_SAMPLES:
            digest.update(file.read())
        else:
            for index in range(NUM_SAMPLES):
                file.seek(index * (size - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def has_inventory(folder: Path) -> bool:
    """Whether this project put the folder in place."""
    return is_marked(folder / INVENTORY_NAME)


def is_marked(path: Path) -> bool:
    """Whether a file holds a JSON object with this project's mark; a link to such a file does not."""
    return _read_object(path).items() >= MARKER.items()


def listed_files(folder: Path) -> set[str]:
    """The files that the folder's list names and that are as they were written, and the list itself."""
    return {name for name, is_unchanged in _compared(folder) if is_unchanged} | (
        {INVENTORY_NAME} if has_inventory(folder) else set()
    )


def is_whole(folder: Path) -> bool:
    """Whether all files that the folder's list names are there, as they were written."""
    return has_inventory(folder) and _fingerprints(folder).keys() <= listed_files(folder)


def changed_files(folder: Path) -> list[str]:
    """The files that the folder's list names and that somebody has changed since."""
    return sorted(name for name, is_unchanged in _compared(folder) if not is_unchanged)


def _fingerprints(folder: Path) -> dict[str, Any]:
    files = _read_object(folder / INVENTORY_NAME).get("files") if has_inventory(folder) else None
    return files if isinstance(files, dict) else {}


def _compared(folder: Path) -> Iterator[tuple[str, bool]]:
    """Each listed file that is there, and whether it is as it was written."""
    for name, fingerprint in _fingerprints(folder).items():
        if os.path.lexists(folder / name) and is_relative(name):
            yield name, is_plain_file(folder, name) and fingerprint_file(folder / name) == fingerprint


def checkpoint_files(folder: Path) -> set[str]:
    """The files of a checkpoint: those that its checkpoint.json lists and those that checkpoints have."""
    seal = _read_object(folder / SEAL_NAME)
    hashes, beside = seal.get("sha256"), seal.get("beside")
    sealed = set(hashes) if isinstance(hashes, dict) else set()
    known = {entry.name for entry in os.scandir(folder) if CHECKPOINT_FILES.fullmatch(entry.name)}
    others = set(beside) if isinstance(beside, list) else set()
    return {name for name in (sealed | known) - others if is_relative(name) and is_plain_file(folder, name)}


def is_relative(name: str) -> bool:
    """Whether a name from a list leads to a place below the folder that it is relative to."""
    return bool(name) and not name.startswith("/") and ".." not in PurePosixPath(name).parts


def is_plain_file(folder: Path, name: str) -> bool:
    """Whether `name` is a file below `folder`, with no link on the way to it."""
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            return False
    return path.is_file()


def foreign_entries(folder: Path, own: Set[str]) -> list[str]:
    """Entries of a folder beside the files of `own`; a folder without any of them is named once, with a slash.

    >>> import tempfile; root = Path(tempfile.mkdtemp())
    >>> for name in ("adapter/weights", "adapter/notes.txt", "src/a.py"):
    ...     (root / name).parent.mkdir(exist_ok=True); _ = (root / name).write_text("")
    >>> foreign_entries(root, {"adapter/weights"})
    ['adapter/notes.txt', 'src/']
    """
    own_folders = {str(parent) for name in own for parent in PurePosixPath(name).parents}
    return sorted(_foreign(folder, "", own, own_folders)) if folder.is_dir() else []


def _foreign(folder: Path, prefix: str, own: Set[str], own_folders: Set[str]) -> Iterator[str]:
    for entry in os.scandir(folder):
        name = prefix + entry.name
        if not entry.is_dir(follow_symlinks=False):
            if name not in own:
                yield name
        elif name in own_folders:
            yield from _foreign(folder / entry.name, f"{name}/", own, own_folders)
        else:
            yield f"{name}/"


def foreign_files(folder: Path, own: Set[str]) -> list[str]:
    """Every file and link below a folder that is not one of `own`."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted({path.relative_to(folder).as_posix() for path in paths} - own)


def delete_files(folder: Path, names: Iterable[str], *, last: str = INVENTORY_NAME) -> bool:
    """Delete files of a folder, and each of its folders that is empty then.

    Args:
        names: relative to `folder`.
        last: deleted after all others, so that what is left half deleted is known as what it was.

    Returns:
        Whether the folder itself is gone.
    """
    names = sorted(names, key=lambda name: name == last)
    for name in names:
        uninterrupted((folder / name).unlink, missing_ok=True)
    return prune(folder, names)


def prune(folder: Path, names: Iterable[str]) -> bool:
    """Delete the folders of the files of `names`, and `folder`, where they are empty; whether `folder` is gone."""
    parents = {parent for name in names for parent in PurePosixPath(name).parents if str(parent) != "."}
    for parent in sorted(parents, key=lambda parent: -len(parent.parts)):
        _delete_empty(folder / parent)
    return _delete_empty(folder)


def _delete_empty(folder: Path) -> bool:
    try:
        uninterrupted(folder.rmdir)
    except FileNotFoundError:
        return True
    except OSError as fault:
        if fault.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def write_list(folder: Path, names: Iterable[str]) -> None:
    """List files that are about to be moved into a folder, without fingerprints."""
    write_json(folder / INVENTORY_NAME, {**MARKER, "files": dict.fromkeys(names, "")})
    fsync(folder)


def read_list(folder: Path) -> list[str]:
    """The files that `write_list` listed, in order; none where the folder is not this project's."""
    files = _read_object(folder / INVENTORY_NAME).get("files") if has_inventory(folder) else None
    return [name for name in files if is_relative(name)] if isinstance(files, dict) else []


def _file_names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(folder).as_posix()


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where it is a link, missing, too long, or something else."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return {}
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
