"""Packed rows in an Arrow file: what a trainer reads, looked into on disk and never loaded as a whole.

The file is one that `datasets.Dataset.from_file` opens. Columns: `input_ids`, `labels`, `seq_lengths` (tokens of each
document in the row), and for each document the `files`, `lines` and `rows` of its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset

from qlora_cli.data.example import Place
from qlora_cli.data.packing import PackedRow
from qlora_cli.data.pieces import Pieces
from qlora_cli.data.spool import Spool
from qlora_cli.data.token_row import TokenRow

NUM_ROWS_WRITTEN_AT_ONCE = 256

_TOKENS = pyarrow.list_(pyarrow.int32())
_NUMBERS = pyarrow.list_(pyarrow.int64())
SCHEMA = pyarrow.schema(
    {
        "input_ids": _TOKENS,
        "labels": _TOKENS,
        "seq_lengths": _TOKENS,
        "files": _TOKENS,
        "lines": _NUMBERS,
        "rows": _NUMBERS,
    }
)


def write_packed_rows(path: Path, spool: Spool | Pieces, order: np.ndarray, offsets: np.ndarray) -> str:
    """Write packed rows of a spool's documents.

    Args:
        path: file to write.
        spool: the documents, long ones perhaps in pieces.
        order: document numbers, those of one packed row after those of the one before.
        offsets: where each packed row begins in `order`, and the end; packed rows + 1.

    Returns:
        SHA-256 over tokens, labels and document lengths of all rows, in hexadecimal.
    """
    digest = hashlib.sha256()
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, SCHEMA) as writer:
        for first in range(0, len(offsets) - 1, NUM_ROWS_WRITTEN_AT_ONCE):
            bounds = offsets[first : first + NUM_ROWS_WRITTEN_AT_ONCE + 1]
            documents = order[bounds[0] : bounds[-1]]
            facts = spool.rows[documents]
            input_ids, labels = spool.tokens(documents)
            document_bounds = bounds - bounds[0]
            token_bounds = np.concatenate(([0], np.cumsum(facts["num_tokens"], dtype=np.int64)))[document_bounds]
            columns = [
                _lists(input_ids, token_bounds),
                _lists(labels, token_bounds),
                *(_lists(facts[name], document_bounds) for name in ("num_tokens", "file", "line", "row")),
            ]
            writer.write_batch(pyarrow.record_batch(columns, schema=SCHEMA))
            for values in (token_bounds, facts["num_tokens"], input_ids, labels):
                digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _lists(values: np.ndarray, bounds: np.ndarray) -> pyarrow.Array:
    return pyarrow.ListArray.from_arrays(
        pyarrow.array(bounds, pyarrow.int32()), pyarrow.array(np.ascontiguousarray(values))
    )


def _largest(values: pyarrow.ChunkedArray) -> int:
    return pyarrow.compute.max(values).as_py() or 0


class PackedRows(Sequence[PackedRow]):
    """The packed rows of a file; each is read when it is asked for."""

    def __init__(self, path: Path, files: Sequence[str]) -> None:
        """
        Args:
            path: as written by `write_packed_rows`.
            files: names that the numbers in column `files` stand for.
        """
        self.dataset = Dataset.from_file(str(path))
        """The rows as `SFTTrainer` takes them."""

        self._files = tuple(files)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest packed row; 0 where there is none."""
        return _largest(pyarrow.compute.list_value_length(self._column("input_ids")))

    @property
    def longest_document(self) -> int:
        """Tokens of the longest document; 0 where there is none."""
        return _largest(pyarrow.compute.list_flatten(self._column("seq_lengths")))

    @property
    def largest_id(self) -> int:
        """The largest token id of all rows, which are read for it; 0 where there is none."""
        return _largest(pyarrow.compute.list_flatten(self._column("input_ids")))

    def _column(self, name: str) -> pyarrow.ChunkedArray:
        return self.dataset.data.column(name)

    def __getitem__(self, number: Any) -> Any:
        row = self.dataset[number]
        return PackedRow(row["input_ids"], row["labels"], row["seq_lengths"])

    def places(self, number: int) -> list[Place]:
        """Origin of each document of a packed row."""
        row = self.dataset[number]
        return [
            Place(self._files[file], line or None, source_row)
            for file, line, source_row in zip(row["files"], row["lines"], row["rows"], strict=True)
        ]

    def documents(self, number: int) -> list[TokenRow]:
        """The documents of a packed row, in its order."""
        row = self[number]
        documents, start = [], 0
        for length, place in zip(row.seq_lengths, self.places(number), strict=True):
            end = start + length
            documents.append(TokenRow(row.input_ids[start:end], row.labels[start:end], place))
            start = end
        return documents

    def all_documents(self) -> Iterator[TokenRow]:
        """The documents of all rows."""
        for number in range(len(self)):
            yield from self.documents(number)
