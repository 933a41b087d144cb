"""Places for hostile files, and how many cases the long versions of these tests run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.harness.hostile import Place, a_copy_of, furnish


def num_cases(name: str, default: int) -> int:
    """How many cases a long test runs: `QLORA_TORTURE_<NAME>` where it is set."""
    return int(os.environ.get(f"QLORA_TORTURE_{name}", default))


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `place` is a copy of."""
    root = tmp_path_factory.mktemp("furnished") / "root"
    furnish(root)
    return root


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Needs of steps that tests in a `place` have traced: a trace takes most of a short command's time.

    A trace is kept under a hash of the recipe and the base's configuration, so a base that another test made hostile
    is not taken for this one.
    """
    return tmp_path_factory.mktemp("traced")


@pytest.fixture
def place(furnished, traced, tmp_path, capsys, monkeypatch) -> Iterator[Place]:
    """Somebody else's files, for a test to make hostile."""
    cache = tmp_path / "root" / "here" / "cache"
    monkeypatch.setenv("QLORA_CACHE", str(cache))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with a_copy_of(furnished, tmp_path / "root") as root:
        shutil.copytree(traced, cache / "plans")
        yield Place(root, capsys)
        if (cache / "plans").is_dir():
            shutil.copytree(cache / "plans", traced, dirs_exist_ok=True)
