"""Hub datasets, read here from a folder of files: `datasets` loads both in the same way."""

from __future__ import annotations

import json

import datasets
import pytest

from qlora_cli.data.read.hub import read_hub
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection

ROWS = [{"text": f"row {number}"} for number in range(5)]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder laid out like a dataset repository, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_come_with_their_number(streaming, repository):
    source = SourceSection(path=str(repository), streaming=streaming)
    assert [(str(raw.place), raw.payload) for raw in read_hub(source)] == [
        (f"{repository}[train]#row {number}", row) for number, row in enumerate(ROWS, start=1)
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_that_is_not_there_is_named(streaming, repository):
    with pytest.raises(DataError, match=r"does not load: .*nowhere"):
        list(read_hub(SourceSection(path=str(repository), split="nowhere", streaming=streaming)))


def test_streaming_ends_at_the_row_that_cannot_be_read(repository):
    with (repository / "train.jsonl").open("a") as file:
        file.write('{"text": \n')
    rows = []
    with pytest.raises(DataError) as caught:
        rows.extend(read_hub(SourceSection(path=str(repository), streaming=True)))
    assert caught.value.problems[0].place == f"{repository}[train]#row {len(rows) + 1}"


def test_files_of_a_repository_are_named_by_a_pattern(repository, monkeypatch):
    (repository / "test.jsonl").write_text('{"text": "held out"}\n')
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda repository_id, **keys: load(str(repository), **keys))
    assert [raw.payload for raw in read_hub(SourceSection(path="hf://datasets/a/b/tr*.jsonl"))] == ROWS
    with pytest.raises(DataError, match="no files are named"):
        list(read_hub(SourceSection(path="hf://datasets/a/b")))
    with pytest.raises(DataError, match="leave `split` out"):
        list(read_hub(SourceSection(path="hf://datasets/a/b/*.jsonl", split="train")))


def test_a_split_or_subset_that_is_missing_is_answered_with_those_that_are_there(repository):
    with pytest.raises(DataError, match=r"train.*\nhint: set `split` to one of them"):
        list(read_hub(SourceSection(path=str(repository), split="nowhere")))
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("main", "socratic"))
    (repository / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in ("main", "socratic"):
        (repository / f"{name}.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"main.*socratic.*\nhint: set `subset` to one of them"):
        list(read_hub(SourceSection(path=str(repository))))
    assert len(list(read_hub(SourceSection(path=str(repository), subset="main")))) == 1
