"""What the user says: a line, or several between two lines of three quotation marks, from a terminal or a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from qlora_cli import console
from qlora_cli.cache_folder import CACHE_ELSEWHERE, cache_folder

FENCE = '"""'
"""Alone on a line it begins a message of several lines, and ends it."""

LONGEST_HISTORY = 1000
"""Lines that are kept across sessions."""


@dataclass(frozen=True)
class Said:
    """A message or a command."""

    text: str
    is_command: bool


class _Cleared(Exception):  # noqa: N818 - not a fault
    """Ctrl-C at the prompt."""


def read_inputs(stream: TextIO) -> Iterator[Said]:
    """Messages of a pipe as they come; from a terminal with a prompt, editing and history.

    Ctrl-C at the prompt clears what was typed; the end of input (Ctrl-D) ends the messages, and a message that has no
    end mark yet with them.
    """
    next_line = _typed_line if stream.isatty() else lambda _: stream.readline() or None
    block: list[str] | None = None
    while True:
        try:
            line = next_line("> " if block is None else "... ")
        except _Cleared:
            block = None
            continue
        is_mark = line is None or line.strip() == FENCE
        if block is not None and is_mark:
            yield Said("\n".join(block).strip("\n"), is_command=False)
            block = None
        elif is_mark:
            block = []
        elif block is not None and line is not None:
            block.append(line.rstrip("\r\n"))
        elif line is not None:
            yield Said(line.strip(), line.lstrip().startswith("/"))
        if line is None:
            return


def _typed_line(prompt: str) -> str | None:
    """A line from the terminal; None at the end of input."""
    import readline  # noqa: F401 - importing it gives `input` its line editing and history

    try:
        return input(prompt)
    except EOFError:
        return None
    except KeyboardInterrupt:
        console.note("\n/exit leaves")
        raise _Cleared from None


def history_file() -> Path:
    """Where typed lines are kept across sessions."""
    return cache_folder("chat") / "history"


@contextmanager
def kept_history(path: Path) -> Iterator[None]:
    """Lines typed in earlier sessions are there in the block, and those of the block in later ones.

    The file is for the user alone (mode 0600) and holds the last `LONGEST_HISTORY` lines, those of sessions beside this
    one included. Where it cannot be read or written the block runs without it, and a line says so.

    Args:
        path: file to keep them in.
    """
    import readline

    readline.clear_history()
    with suppress(OSError):
        readline.read_history_file(path)
    num_before = readline.get_current_history_length()
    try:
        yield
    finally:
        numbers = range(num_before + 1, readline.get_current_history_length() + 1)
        new = [line for line in map(readline.get_history_item, numbers) if line]
        try:
            _add_to_history(path, new)
        except OSError as fault:
            console.note(f"typed lines are not kept: {fault}; {CACHE_ELSEWHERE}")


def _add_to_history(path: Path, new: list[str]) -> None:
    import readline

    if not new:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    path.chmod(0o600)
    readline.clear_history()
    readline.read_history_file(path)  # again: another session may have ended meanwhile
    for line in new:
        readline.add_history(line)
    readline.set_history_length(LONGEST_HISTORY)
    readline.write_history_file(path)
