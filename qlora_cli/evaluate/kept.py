"""Results of single questions, and judgements, kept as they come: what was stopped continues where it was.

They are lines of a file that only grows. Each has a key, a hash over all that the result depends on: the weights of
base and adapter, the precision, the prompt's tokens, and the settings. So whatever has changed is computed again, and
what a process wrote that was killed in the middle of a line is cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qlora_cli.errors import ArgumentError, RunInUseError
from qlora_cli.run.disk_errors import naming
from qlora_cli.run.eval_results import GROWING, PARTIAL_NAME, is_own_growing

Value = dict[str, Any]

NOTHING: Mapping[str, Value] = {}


def key_of(*parts: object) -> str:
    """Hash over what a result depends on.

    >>> key_of("base", [1, 2]) == key_of("base", [1, 2]), key_of("base", [1, 2]) == key_of("base", [12])
    (True, False)
    """
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Kept:
    """Results by their keys; without a file they are kept in memory alone."""

    def __init__(
        self, file: int | None = None, path: Path | None = None, values: Mapping[str, Value] = NOTHING
    ) -> None:
        self._file, self._path = file, path
        self._values = dict(values)
        self.num_found = len(self._values)
        """Results of an evaluation that was stopped."""

    def __len__(self) -> int:
        return len(self._values)

    @property
    def is_stored(self) -> bool:
        """Whether the results are in a file, for the next time."""
        return self._file is not None

    def get(self, key: str) -> Value | None:
        """The result of that key, if it is known."""
        return self._values.get(key)

    def add(self, keys: Sequence[str], values: Sequence[Value]) -> None:
        """Keep results, all of a batch in one piece."""
        self._values.update(zip(keys, values, strict=True))
        if self._file is None:
            return
        lines = [json.dumps([key, value], ensure_ascii=False) + "\n" for key, value in zip(keys, values, strict=True)]
        left = memoryview("".join(lines).encode())
        with naming(self._path):
            while left:
                left = left[os.write(self._file, left) :]


@contextmanager
def kept_in(folder: Path, name: str = PARTIAL_NAME) -> Iterator[Kept]:
    """Results kept in the file of that name in `folder`, with those that are there from an earlier time.

    Where nothing was computed, no file is left, and no folder that was made for it.

    Raises:
        RunInUseError: if another process measures there.
        ArgumentError: if a file of that name was not written by this project.
    """
    path, head = folder / name, GROWING[name]
    is_new_folder = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if (
        os.path.lexists(path)
        and not is_own_growing(folder, name)
        and (path.is_symlink() or not path.is_file() or _size(path))
    ):
        raise ArgumentError("was not written by qlora", place=str(path), hint="move it away, then measure again")
    with naming(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _lock(file, path)
        with naming(path):
            values = _read(file, head)
        yield Kept(file, path, values)
    finally:
        if not os.fstat(file).st_size > len(head):
            with suppress(OSError):
                path.unlink()
            if is_new_folder:
                with suppress(OSError):
                    folder.rmdir()
        os.close(file)


def _size(path: Path) -> int:
    return path.stat().st_size


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunInUseError(
            "another `qlora eval` is measuring here", place=str(path.parent), hint="wait until it has ended"
        ) from None
    except OSError:  # a file system without locks
        pass


def _read(file: int, head: str) -> dict[str, Value]:
    """The results in the file, which is cut back to the last complete line; an empty one gets its first line."""
    with os.fdopen(os.dup(file), "rb") as reader:
        reader.seek(0)
        content = reader.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.ftruncate(file, end)
    if not end:
        os.write(file, head.encode())
        return {}
    values = {}
    for line in content[:end].splitlines()[1:]:
        try:
            key, value = json.loads(line)
        except ValueError:
            continue
        if isinstance(key, str) and isinstance(value, dict):
            values[key] = value
    return values
