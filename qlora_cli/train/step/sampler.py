"""The rows that one of several processes trains on: its part of every step's batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from torch import Generator
from torch.utils.data import Dataset, Sampler

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.train.step.row_ids import ROW_IDS

PADDING_ROW = -1
"""Number of the row that fills up the last batch of an epoch; it has no label."""


def share(order: Sequence[int], batch_size: int, rank: int, world_size: int) -> list[int]:
    """Row numbers of one process: the batch of all processes, cut into one part each.

    Two processes with batches of 2 see in each step what one process with batches of 4 sees. The last batch is
    filled up with rows that teach nothing, so that no row counts twice in an epoch.

    >>> share([7, 5, 6, 4, 3], batch_size=2, rank=0, world_size=2)
    [7, 5, 3, -1]
    >>> share([7, 5, 6, 4, 3], batch_size=2, rank=1, world_size=2)
    [6, 4, -1, -1]
    """
    together = batch_size * world_size
    filled = [*order, *[PADDING_ROW] * (-len(order) % together)]
    starts = range(rank * batch_size, len(filled), together)
    return [row for start in starts for row in filled[start : start + batch_size]]


class ShardedSampler(Sampler[int]):
    """The share of one process in each epoch's shuffled rows; the order is that of a run in one process."""

    def __init__(self, num_rows: int, batch_size: int, rank: int, world_size: int, *, seed: int) -> None:
        self._rows = range(num_rows)
        self._batch_size = batch_size
        self._rank = rank
        self._num_ranks = world_size
        self._order = SeedableRandomSampler(self._rows, generator=Generator(), data_seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order comes next."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._rows) // (self._batch_size * self._num_ranks)) * self._batch_size

    def __iter__(self) -> Iterator[int]:
        yield from share(list(self._order), self._batch_size, self._rank, self._num_ranks)


class PaddedDataset(Dataset[dict[str, Any]]):
    """Rows, and one more under the number `PADDING_ROW`: the first one without its labels."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number == PADDING_ROW:
            row = self._rows[0]
            return {**row, "labels": [IGNORE_INDEX] * len(row["labels"]), ROW_IDS: PADDING_ROW}
        return self._rows[number]
