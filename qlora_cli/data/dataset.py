"""Packed rows as a `datasets.Dataset`, the only container that `SFTTrainer` takes."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from qlora_cli.data.packing import PackedRow


def as_dataset(rows: Sequence[PackedRow]) -> Dataset:
    """Columns `input_ids`, `labels` and `seq_lengths`, held in memory."""
    return Dataset.from_dict(
        {
            "input_ids": [row.input_ids for row in rows],
            "labels": [row.labels for row in rows],
            "seq_lengths": [row.seq_lengths for row in rows],
        }
    )
