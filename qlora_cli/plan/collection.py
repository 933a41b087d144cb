"""Python's garbage collector, out of the way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Nobody looks for garbage in the block.

    Storages then die when the last reference goes, not when the collector happens to run; and looking over and over,
    which finds next to none, takes a quarter of the time of one plan.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
