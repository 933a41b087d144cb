"""Folders and patterns: all files of one split are read, and none is skipped silently."""

from __future__ import annotations

import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_cli.data.read.folders import choose_split, split_of
from qlora_cli.data.read.sources import read_rows, source_files
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection

HUB = [
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
    "README.md",
    ".gitattributes",
    "dataset_infos.json",
]
SUBSETS = [f"{subset}/{split}-00000-of-00001.parquet" for subset in ("main", "socratic") for split in ("train", "test")]
ULTRACHAT = [
    "data/train_sft-00000-of-00002.parquet",
    "data/train_sft-00001-of-00002.parquet",
    "data/train_gen-00000-of-00001.parquet",
    "data/test_sft-00000-of-00001.parquet",
]
BY_FOLDER = ["train/part-0.jsonl", "train/part-1.jsonl", "test/part-0.jsonl"]


def lay_out(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"text": name}
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps(row) + "\n" if name.endswith("jsonl") else "about\n")


def texts(path, **keys):
    return [row["text"] for _, row in read_rows(SourceSection(path=str(path), **keys))]


@pytest.mark.parametrize(
    ("names", "keys", "expected"),
    [
        (HUB, {"split": "train"}, HUB[:2]),
        (HUB, {"split": "test"}, HUB[2:3]),
        (SUBSETS, {"subset": "main", "split": "train"}, SUBSETS[:1]),
        (SUBSETS, {"subset": "socratic", "split": "test"}, SUBSETS[3:]),
        (ULTRACHAT, {"split": "train_sft"}, ULTRACHAT[:2]),
        (BY_FOLDER, {"split": "train"}, BY_FOLDER[:2]),
        (["a.jsonl", "b.jsonl"], {}, ["a.jsonl", "b.jsonl"]),
        (["a.jsonl", "b.jsonl"], {"split": "train"}, ["a.jsonl", "b.jsonl"]),
        (["dev-0.jsonl", "dev-1.jsonl"], {"split": "validation"}, ["dev-0.jsonl", "dev-1.jsonl"]),
        (["math_train.jsonl", "math_test.jsonl"], {"split": "train"}, ["math_train.jsonl"]),
    ],
)
def test_all_files_of_a_split_are_read_and_no_other(names, keys, expected, tmp_path):
    lay_out(tmp_path, names)
    assert texts(tmp_path, **keys) == expected
    files = source_files(SourceSection(path=str(tmp_path), **keys))
    assert [str(file.relative_to(tmp_path)) for file in files] == expected


@pytest.mark.parametrize(
    ("pattern", "keys", "expected"),
    [
        ("data/train-*.parquet", {}, HUB[:2]),
        ("data/*.parquet", {"split": "train"}, HUB[:2]),
        ("**/*.parquet", {"split": "test"}, HUB[2:3]),
        ("data/test-0000[0-9]-*", {}, HUB[2:3]),
    ],
)
def test_a_pattern_names_files(pattern, keys, expected, tmp_path):
    lay_out(tmp_path, HUB)
    assert texts(tmp_path / pattern, **keys) == expected


@pytest.mark.parametrize(
    ("names", "path", "fragment"),
    [
        (HUB, "", "several splits: test, train\nhint: set `split: train`"),
        (HUB, "data", "several splits: test, train\nhint: set `split: train`"),
        (HUB, "data/*.parquet", "several splits: test, train\nhint: set `split: train`"),
        (ULTRACHAT, "", "several splits: test_sft, train_gen, train_sft\nhint: set `split: train_gen`"),
        (SUBSETS, "", r"not looked into\nhint: set `subset` to the folder that is meant \(main, socratic\)"),
        (BY_FOLDER, "", "several splits: test, train\nhint: set `split: train`"),
    ],
)
def test_files_of_several_splits_are_refused_and_the_hint_reads_a_whole_one(names, path, fragment, tmp_path):
    lay_out(tmp_path, names)
    with pytest.raises(DataError, match=fragment) as caught:
        texts(f"{tmp_path}/{path}")
    if split := re.search(r"`split: (\w+)`", caught.value.problems[0].hint):
        read = texts(f"{tmp_path}/{path}", split=split.group(1))
        assert len(read) == sum(f"{split.group(1)}-" in name or f"{split.group(1)}/" in name for name in names)


@pytest.mark.parametrize(
    ("names", "path", "keys", "fragment"),
    [
        (HUB, "", {"split": "validation"}, "no file of split 'validation'\nhint: set `split` to one of: test, train"),
        (ULTRACHAT, "", {"split": "train"}, "to one of: test_sft, train_gen, train_sft"),
        (["a.jsonl"], "", {"split": "test"}, "no file of split 'test'\nhint: leave `split` out"),
        (SUBSETS, "", {"subset": "mian"}, "no subset 'mian'.*\nhint: set `subset` to one of: main, socratic"),
        (["train.jsonl", "test.jsonl", "more.jsonl"], "", {"split": "train"}, "'more.jsonl' says no split"),
        (["train.jsonl"], "*.json", {}, "no file fits the pattern"),
        (["train.jsonl"], "nowhere/*.json", {}, "folder '.*nowhere' does not exist"),
        (["a.jsonl", "a.txt"], "", {}, "unknown kind of data file '.txt'"),
        (["a.jsonl"], "../x", {"subset": "b"}, "leave `subset` out|no such file"),
    ],
)
def test_a_split_or_file_that_is_not_there_is_refused(names, path, keys, fragment, tmp_path):
    lay_out(tmp_path, names)
    with pytest.raises(DataError, match=fragment):
        texts(f"{tmp_path}/{path}", **keys)


NAMES = st.sampled_from(["train", "test", "dev", "a", "train_sft", "x-train", "latest", "part"])
SHARDS = st.sampled_from(["", "-00000-of-00002", "-00001-of-00002"])


@given(st.sets(st.builds("{}{}.jsonl".format, NAMES, SHARDS), min_size=1), st.none() | NAMES)
def test_every_file_is_read_or_of_another_split_or_refused(tmp_path_factory, names, split):
    root = tmp_path_factory.getbasetemp()
    files = sorted(root / name for name in names)
    try:
        chosen = choose_split(files, root, split, "x")
    except DataError:
        return
    for file in files:
        assert (file in chosen) or (split is not None and split_of(file, root) not in (None, split_of(chosen[0], root)))
    assert len({split_of(file, root) for file in chosen} - {None}) <= 1
