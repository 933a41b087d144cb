"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(is_so: Callable[[], object], seconds: float) -> None:
    """Look at it again and again until it holds; after so many seconds the test fails."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "out of patience"
        time.sleep(0.02)
