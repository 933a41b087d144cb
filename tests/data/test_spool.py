"""Rows on disk while they come in."""

from __future__ import annotations

import numpy as np
import pytest

from qlora_cli.data.example import Place
from qlora_cli.data.spool import Spool, batch_of
from qlora_cli.data.token_row import TokenRow

ROWS = [
    TokenRow([1, 2, 3], [-100, 2, 3], Place("a.jsonl", 1, 1)),
    TokenRow([4], [-100], Place("a.jsonl", 2, 2)),
    TokenRow([5, 6], [-100, 6], Place("b.parquet", None, 1)),
]


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path)
    spool.append(batch_of(ROWS[:2], [0, 0], [b"1" * 16, b"2" * 16]))
    spool.append(batch_of(ROWS[2:], [1], [b"3" * 16]))
    spool.close()
    return spool


def test_rows_are_read_by_number_in_any_order_and_more_than_once(spool):
    input_ids, labels = spool.tokens(np.array([2, 0, 2]))
    assert input_ids.tolist() == [5, 6, 1, 2, 3, 5, 6]
    assert labels.tolist() == [-100, 6, -100, 2, 3, -100, 6]


def test_what_is_known_of_a_row_stands_in_one_table(spool):
    assert spool.rows["num_tokens"].tolist() == [3, 1, 2]
    assert spool.rows["num_trained_tokens"].tolist() == [2, 0, 1]
    assert spool.rows["line"].tolist() == [1, 2, 0]
    assert spool.rows["file"].tolist() == [0, 0, 1]
    assert spool.rows["digest"][1].tobytes() == b"2" * 16


def test_some_rows_of_a_batch():
    batch = batch_of(ROWS, [0, 0, 1], [b"1" * 16, b"2" * 16, b"3" * 16]).only(np.array([True, False, True]))
    assert batch.input_ids.tolist() == [1, 2, 3, 5, 6]
    assert batch.rows["row"].tolist() == [1, 1]


def test_an_empty_spool_can_be_read(tmp_path):
    spool = Spool(tmp_path)
    spool.append(batch_of([], [], []))
    spool.close()
    assert len(spool.rows) == 0
    assert len(spool.tokens(np.zeros(0, np.int64))[0]) == 0


def test_deleting_leaves_nothing(spool, tmp_path):
    spool.delete()
    assert list(tmp_path.iterdir()) == []
