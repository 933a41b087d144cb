"""Toy checkpoints that several tests read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.bases import save_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From a name of `tests.model.bases` to a folder with its checkpoint, which no test may change."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_toy(name, tmp_path_factory.mktemp(name) / "base")
        return made[name]

    return folder
