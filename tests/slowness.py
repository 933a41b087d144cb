"""Which tests `make test-quick` leaves out: folders that work on models, property tests, and what is marked `slow`.

The mark cannot be forgotten: whichever way the tests are run, one without it that takes a step of an optimizer, on real
weights or on the fake ones of a plan, or starts a process, fails and says so. A plugin of pytest, which
`tests/conftest.py` loads where tests run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

ROOMS = ("deploy", "evaluate", "gpu", "model", "plan", "reliability", "serve", "train")
"""Folders of `tests/` in which every test is slow."""

TESTS = Path(__file__).parent

PROCESS_STARTS = ("os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen")
"""Audit events of the interpreter."""

_seen: set[str] = set()
"""What the test that runs has done so far."""


def room_of(path: Path) -> str:
    """The folder of `tests/` that a path lies in, or is; empty for the files beside the folders.

    >>> room_of(TESTS / "train" / "test_session.py"), room_of(TESTS / "test_docs.py")
    ('train', '')
    """
    parts = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
    return parts[0] if parts and not parts[0].endswith(".py") else ""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where slow tests are not wanted, their rooms are not even imported."""
    is_unwanted = "not slow" in (config.option.markexpr or "")
    return True if is_unwanted and room_of(collection_path) in ROOMS else None


def pytest_itemcollected(item: pytest.Item) -> None:
    is_property = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
    if room_of(item.path) in ROOMS or is_property:
        item.add_marker("slow")


def pytest_runtest_setup() -> None:
    _seen.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that has done what slow ones do must be marked."""
    yield
    if _seen and not item.get_closest_marker("slow"):
        pytest.fail(f"it has made {' and '.join(sorted(_seen))}: mark it with `@pytest.mark.slow`", pytrace=False)


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in PROCESS_STARTS:
        _seen.add("a process")


sys.addaudithook(_watch)
register_optimizer_step_pre_hook(lambda *_: _seen.add("a training step"))
