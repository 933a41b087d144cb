"""Packed rows into tensors that keep documents apart without an attention mask.

    B = rows, L = longest row

`position_ids` restart at every document. Given without an attention mask and without a cache, `transformers` derives
from the restarts that no token may attend across one, for sdpa and eager attention alike. A mask would switch that
off.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from qlora_cli.constants import IGNORE_INDEX


def restarting_positions(seq_lengths: Sequence[int]) -> list[int]:
    """Position of each token in its own document.

    >>> restarting_positions([3, 2])
    [0, 1, 2, 0, 1]
    """
    return [position for length in seq_lengths for position in range(length)]


class Collator:
    """Makes a batch out of packed rows."""

    def __init__(self, pad_token_id: int, flatten: bool = False) -> None:
        """
        Args:
            pad_token_id: fills rows up to the longest; the padding is a document of its own and has no labels.
            flatten: one row of all documents, unpadded, with the document bounds that variable-length attention
                kernels (flash attention) take. Under sdpa such a row would pay for an (all tokens)^2 mask.
        """
        self._pad_token_id = pad_token_id
        self._flatten = flatten

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: each with `input_ids`, `labels` and `seq_lengths`, as in `PackedRow`.

        Returns:
            `input_ids`, `labels` and `position_ids` of shape (B, L), int64; with `flatten`, of shape (1, tokens), and
            `cu_seq_lens_q`, `cu_seq_lens_k` (int32, documents + 1) and `max_length_q`, `max_length_k`.
        """
        rows = [_without_borders(row) for row in rows]
        return self._flattened(rows) if self._flatten else self._padded(rows)

    def _padded(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        num_tokens = max(len(row["input_ids"]) for row in rows)
        input_ids, labels, position_ids = [], [], []
        for row in rows:
            num_missing = num_tokens - len(row["input_ids"])
            input_ids.append([*row["input_ids"], *[self._pad_token_id] * num_missing])
            labels.append([*row["labels"], *[IGNORE_INDEX] * num_missing])
            position_ids.append(restarting_positions([*row["seq_lengths"], num_missing]))
        return {
            "input_ids": torch.tensor(input_ids),
            "labels": torch.tensor(labels),
            "position_ids": torch.tensor(position_ids),
        }

    def _flattened(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        seq_lengths = [length for row in rows for length in row["seq_lengths"]]
        bounds = torch.tensor([0, *accumulate(seq_lengths)], dtype=torch.int32)
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
            "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
            "position_ids": torch.tensor([restarting_positions(seq_lengths)]),
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": max(seq_lengths),
            "max_length_k": max(seq_lengths),
        }


def _without_borders(row: dict[str, Any]) -> dict[str, Any]:
    """The row with no label on the first token of any document: another document's token would have to predict it."""
    labels = list(row["labels"])
    for first in accumulate([0, *row["seq_lengths"][:-1]]):
        labels[first] = IGNORE_INDEX
    return {**row, "labels": labels}
