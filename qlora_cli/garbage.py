"""Python's garbage collector, and when it stays out of the way: while libraries are imported, or memory is counted."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_is_for_one_command = False


@contextmanager
def collector_off() -> Iterator[None]:
    """The garbage collector does not run by itself in the block; afterwards it is as it was before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def expect_one_command() -> None:
    """This process runs one command and ends, so `set_imports_aside` may keep for good what is there."""
    global _is_for_one_command
    _is_for_one_command = True


def set_imports_aside() -> None:
    """Have collections leave out what the first imports of a command made; each would look through all of it.

    Once, and not in a process of the user's own: what is there might be the user's, and could then never be freed.
    """
    global _is_for_one_command
    if _is_for_one_command:
        gc.freeze()
        _is_for_one_command = False
