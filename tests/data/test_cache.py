"""The cache of prepared data: safe when many start together, listed and cleared."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import re

import pytest

from qlora_cli.data.cache import cache_key, cache_root, clear, code_files, list_entries, locked
from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.recipe.data_schema import DataSection
from tests.run.leftovers import half_written_folder
from tests.tiny_models import byte_tokenizer

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(scope="module")
def renderer():
    return Renderer(byte_tokenizer())


@pytest.fixture
def section(chat_data):
    return DataSection.model_validate({"train": str(chat_data), "max_length": 128})


def prepare_and_tell(section, results):
    prepared = prepare_data(section, Renderer(byte_tokenizer()), 0)
    results.put((prepared.is_cached, prepared.fingerprint, len(prepared.train)))


@pytest.mark.slow
def test_of_sixteen_processes_one_makes_what_all_use(section):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=prepare_and_tell, args=(section, results)) for _ in range(16)]
    for process in processes:
        process.start()
    told = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(is_cached for is_cached, *_ in told) == [False] + [True] * 15
    assert len({told_fingerprint for _, told_fingerprint, _ in told}) == 1
    assert len(list_entries()) == 1


def test_entries_tell_what_they_hold(section, renderer, chat_data):
    prepare_data(section, renderer, 0)
    [entry] = list_entries()
    assert entry.sources == (str(chat_data),)
    assert entry.num_rows == 48
    assert entry.num_bytes == sum(file.stat().st_size for file in entry.path.iterdir())


def test_the_latest_used_comes_first(section, renderer):
    for seed in (0, 1):
        prepare_data(section, renderer, seed)
    for number, entry in enumerate(list_entries()):
        os.utime(entry.path / "facts.json", (number, number))
    first, second = list_entries()
    assert first.used_at > second.used_at
    prepare_data(section, renderer, 0)
    assert list_entries()[0].key == cache_key(section, renderer, 0)


def test_clearing_frees_what_it_says(section, renderer):
    prepare_data(section, renderer, 0)
    [entry] = list_entries()
    assert clear() == entry.num_bytes
    assert list_entries() == []


def test_clearing_leaves_an_entry_that_is_being_made(section, renderer):
    prepare_data(section, renderer, 0)
    [entry] = list_entries()
    with (cache_root() / f".{entry.key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert clear() == 0
    assert len(list_entries()) == 1


def test_clearing_deletes_nothing_that_is_no_entry(section, renderer):
    prepare_data(section, renderer, 0)
    [entry] = list_entries()
    others = [
        cache_root() / name for name in ("photos/a.jpg", "0" * 32 + "/thesis.txt", f"{entry.key}/notes.txt", "b.txt")
    ]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert clear() == entry.num_bytes
    assert [path.read_text() for path in others] == ["mine"] * 4
    assert list_entries() == []


def test_what_a_killed_process_left_is_no_entry_and_is_cleared(section):
    with locked("0" * 32) as entry:
        stage = half_written_folder(entry)
    assert list_entries() == []
    assert clear() == 4
    assert not stage.exists()


def test_what_a_killed_process_left_goes_when_the_same_data_is_made(section, renderer):
    key = cache_key(section, renderer, 0)
    with locked(key) as entry:
        stages = [half_written_folder(entry.with_name(name)) for name in (key, "0" * 32)]
    prepare_data(section, renderer, 0)
    assert [stage.exists() for stage in stages] == [False, True]
    assert (cache_root() / f".{key}.lock").exists()


def test_an_entry_holds_no_path_that_a_reader_needs(section, renderer):
    """The folder can be moved: facts name sources, and nothing of the cache itself."""
    prepare_data(section, renderer, 0)
    [entry] = list_entries()
    assert str(cache_root()) not in json.dumps(json.loads((entry.path / "facts.json").read_text()))


def test_a_hub_dataset_that_may_change_has_no_key(renderer):
    unpinned, pinned = ({"path": "owner/name", "revision": revision} for revision in ("main", "0" * 40))
    assert cache_key(DataSection.model_validate({"train": unpinned}), renderer, 0) is None
    assert cache_key(DataSection.model_validate({"train": pinned}), renderer, 0) is not None


SHAPE_NO_ROW = {
    "errors",
    "console",
    "progress",
    "secrets",
    "hub",
    "interruption",
    "run",
    "cache_folder",
    "upstream",
    "upstream_names",
    "upstream_row",
}
"""Packages that say, ask, refuse or write. What `recipe` says of the data is in the key by itself."""


def test_all_code_that_shapes_rows_is_part_of_the_key():
    names = {path.name for path in code_files()}
    assert {"compat.py", "constants.py", "alpaca.jinja", "renderer.py", "packing.py"} <= names
    imported = set()
    for path in code_files():
        text = path.read_text("utf-8")
        imported |= set(re.findall(r"^ *from qlora_cli\.(\w+)", text, flags=re.MULTILINE))
        imported |= set(re.findall(r"^ *from qlora_cli import (\w+)", text, flags=re.MULTILINE))
    assert imported - SHAPE_NO_ROW - {"data", "recipe"} == {"compat", "constants"}
