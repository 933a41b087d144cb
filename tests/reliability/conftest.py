"""Long versions of these tests are marked `torture`; they run when the marker is asked for by name."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long versions out unless `-m` names them."""
    if "torture" in (config.option.markexpr or ""):
        return
    long = [item for item in items if item.get_closest_marker("torture")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def num_cases(name: str, default: int) -> int:
    """How many cases a long test runs: `QLORA_TORTURE_<NAME>` where it is set."""
    return int(os.environ.get(f"QLORA_TORTURE_{name}", default))
