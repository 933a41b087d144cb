"""Folders of tiny bases, each made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plan.bases import config_of, save_base


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A function from the name of an architecture to a folder with a tiny base of it."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = save_base(tmp_path_factory.mktemp(name), config_of(name))
        return made[name]

    return folder
