"""The tests' surroundings: signals, caches and temporary files, what is left out, and the plugins that tests stand on.

The process that only hands tests out to others loads none of the heavy libraries: while it did, those could not
begin.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # as the command line has it while it imports

import pytest

from tests.reliability.harness.forkserver import FOLDER_VARIABLE
from tests.turns import take_every

PLUGINS = ("tests.slowness", "tests.tiny_models")
"""Plugins of pytest that import heavy libraries."""

MEMORY_DISK_BYTES = 8 * 2**30
"""What a disk in memory must have free for the tests to write there; they take under 2 GB at once."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden again")


def pytest_configure(config: pytest.Config) -> None:
    """Tests that are not marked `gpu` run on the CPU, also where there is a GPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Where the tests were started in the background or by nohup, signals are ignored, and programs would inherit that.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if not is_worker:  # workers inherit what the process that starts them has
        _write_into_memory()
        # Tests find what other tests prepared, also in the other worker, and never what the developer did.
        cache = tempfile.TemporaryDirectory(prefix="qlora-tests-")
        os.environ["QLORA_CACHE"] = cache.name
        shared = tempfile.TemporaryDirectory(prefix="qlora-shared-")
        os.environ[FOLDER_VARIABLE] = shared.name
        config.add_cleanup(shared.cleanup)
        config.add_cleanup(cache.cleanup)
    if is_worker or config.getoption("dist", "no") == "no":
        gc.disable()  # until all tests are collected: a quarter of that time went into looking for what can be freed
        for plugin in PLUGINS:
            config.pluginmanager.import_plugin(plugin)


def _write_into_memory() -> None:
    """Put temporary files on a disk in memory where there is one of size, unless TMPDIR names a place.

    Training writes and flushes many small files: on a disk a tiny run took twice as long.
    """
    memory = Path("/dev/shm")
    if "TMPDIR" not in os.environ and memory.is_dir() and shutil.disk_usage(memory).free >= MEMORY_DISK_BYTES:
        os.environ["TMPDIR"] = str(memory)
        tempfile.tempdir = None


@pytest.hookimpl(tryfirst=True)  # before `-m` is looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long versions, marked `torture`, out unless `-m` names them."""
    take_every(items)
    if "torture" in (config.option.markexpr or ""):
        return
    long = [item for item in items if item.get_closest_marker("torture")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()  # see `pytest_configure`


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        set_aside()


def set_aside() -> None:
    """Leave what is imported and collected out of garbage collections; training makes one each time.

    With the objects of all tests, 2.6 million, each would take 2.2 s, longer than the training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of prepared data that holds nothing yet."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("QLORA_CACHE", str(folder))
    return folder
