"""Row numbers of a batch: they travel with it, beside what the model reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from qlora_cli.data.collator import Collator
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.data.token_row import TokenRow

ROW_IDS = "row_ids"
"""Column of a training row, and key of a batch: int64 of shape (rows of the batch,)."""

NUM_PLACES_NAMED = 8


def dataset_with_row_ids(rows: PackedRows) -> Any:
    """The rows as `SFTTrainer` takes them, each with its number; eight bytes a row are held in memory."""
    return rows.dataset.add_column(ROW_IDS, np.arange(len(rows)), new_fingerprint="numbered")


class RowIdCollator:
    """Makes batches as `Collator` does and writes down which rows they hold.

    Args:
        collator: makes what the model reads.
    """

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: of `dataset_with_row_ids`.
        """
        return {**self._collator(rows), ROW_IDS: torch.tensor([row[ROW_IDS] for row in rows])}


def documents_of(rows: PackedRows, numbers: Iterable[int]) -> Iterator[TokenRow]:
    """The documents of some packed rows, in the rows' order; negative numbers stand for rows that fill up a batch."""
    for number in numbers:
        if number >= 0:
            yield from rows.documents(number)


def describe_places(documents: Sequence[TokenRow]) -> str:
    """Places of documents, in one line; the rest is counted.

    >>> from qlora_cli.data.example import Place
    >>> describe_places([TokenRow([1], [1], Place("a.jsonl", line, line)) for line in range(1, 11)])[-36:]
    'a.jsonl:7, a.jsonl:8 and 2 rows more'
    """
    named = ", ".join(str(document.place) for document in documents[:NUM_PLACES_NAMED])
    num_more = len(documents) - NUM_PLACES_NAMED
    return named + (f" and {num_more:,} rows more" if num_more > 0 else "")
