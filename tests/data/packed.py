"""Packed rows in memory; the product writes them to disk, document by document."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qlora_cli.data.packing import PackedRow, plan_packing, unpacked
from qlora_cli.data.token_row import TokenRow


def pack(rows: Sequence[TokenRow], max_length: int) -> list[PackedRow]:
    """The documents one after the other in rows of at most `max_length` tokens, as they are planned."""
    order, offsets = plan_packing(np.array([len(row.input_ids) for row in rows], np.int64), max_length)
    packed = []
    for members in np.split(order, offsets[1:-1]):
        row = PackedRow([], [], [])
        for document in unpacked([rows[number] for number in members]):
            row.input_ids += document.input_ids
            row.labels += document.labels
            row.seq_lengths += document.seq_lengths
        packed.append(row)
    return packed
