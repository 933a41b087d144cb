"""Packed rows in a file: what was written is what is read."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from qlora_cli.data.example import Place
from qlora_cli.data.packed_rows import PackedRows, write_packed_rows
from qlora_cli.data.spool import Spool, batch_of
from qlora_cli.data.token_row import TokenRow

ROWS = [TokenRow([n] * (n + 1), [-100] + [n] * n, Place("a.jsonl", n + 1, n + 1)) for n in range(1, 6)]
FILES = ["a.jsonl"]


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path)
    spool.append(batch_of(ROWS, [0] * len(ROWS), [bytes(16)] * len(ROWS)))
    spool.close()
    return spool


def write(spool, path, order=(0, 3, 2, 1, 4), offsets=(0, 2, 3, 5)):
    return write_packed_rows(path, spool, np.array(order), np.array(offsets))


def test_rows_hold_their_documents_in_order(spool, tmp_path):
    write(spool, tmp_path / "rows.arrow")
    rows = PackedRows(tmp_path / "rows.arrow", FILES)
    assert [row.seq_lengths for row in rows] == [[2, 5], [4], [3, 6]]
    assert rows[0].input_ids == [1, 1, 4, 4, 4, 4, 4]
    assert rows[0].labels == [-100, 1, -100, 4, 4, 4, 4]


def test_every_document_comes_back_with_its_place(spool, tmp_path):
    write(spool, tmp_path / "rows.arrow")
    rows = PackedRows(tmp_path / "rows.arrow", FILES)
    assert list(rows.all_documents()) == [ROWS[at] for at in (0, 3, 2, 1, 4)]
    assert list(map(str, rows.places(2))) == ["a.jsonl:3", "a.jsonl:6"]


def test_datasets_opens_the_file(spool, tmp_path):
    write(spool, tmp_path / "rows.arrow")
    opened = datasets.Dataset.from_file(str(tmp_path / "rows.arrow"))
    assert opened["input_ids"][1] == [3, 3, 3, 3]


def test_more_rows_than_are_written_at_once(spool, tmp_path):
    write(spool, tmp_path / "rows.arrow", [0, 4] * 1000, range(2001))
    rows = PackedRows(tmp_path / "rows.arrow", FILES)
    assert len(rows) == 2000
    assert rows[1999].input_ids == ROWS[4].input_ids


def test_a_file_without_rows(spool, tmp_path):
    write(spool, tmp_path / "rows.arrow", [], [0])
    assert len(PackedRows(tmp_path / "rows.arrow", FILES)) == 0


def test_the_fingerprint_is_of_tokens_labels_and_borders(spool, tmp_path):
    prints = {
        write(spool, tmp_path / "rows.arrow", order, offsets)
        for order, offsets in (((0, 1), (0, 2)), ((1, 0), (0, 2)), ((0, 1), (0, 1, 2)), ((0,), (0, 1)))
    }
    assert len(prints) == 4
    assert write(spool, tmp_path / "a") == write(spool, tmp_path / "b")
