"""Documents into rows of `max_length` tokens: whole documents, as little padding as possible.

Best-fit decreasing (Johnson 1973): the longest document first, each into the fullest row that still has room for it.
Documents of equal length are placed together. The fullest row with room for one of them stays the fullest until none
fits any more, so a row takes as many as it can in one go, and all rows with the same room take the same number:

    room left    rows         6 documents of 3
    7            a, b    ->   a: 2, b: 2           (both have 1 left)
    9            c       ->   c: 2                 (3 left; it could take another)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.token_row import TokenRow

WINDOW = 65_536
"""Documents that are packed together; keeps memory flat, at the cost of a few half-empty rows a window."""


@dataclass(slots=True)
class PackedRow:
    """One row of the batch: documents one after the other."""

    input_ids: list[int]
    labels: list[int]
    """The first label of every document is IGNORE_INDEX: the token before it is another document's."""

    seq_lengths: list[int]
    """Tokens of each document, in order."""


def plan_packing(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Assignment of documents to packed rows.

    Args:
        lengths: tokens of each document, from 1 to `capacity`.
        capacity: tokens of a packed row.

    Returns:
        Document numbers in packed order, and where each packed row begins in it, with the end (packed rows + 1); both
        int64. Within a window rows are in the order of their first document, and documents in their own.

    >>> order, offsets = plan_packing(np.array([3, 5, 2, 6]), capacity=8)
    >>> [part.tolist() for part in np.split(order, offsets[1:-1])]
    [[0, 1], [2, 3]]

    Raises:
        ValueError: if a document is longer than a row, or empty.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"documents of {lengths.min()} to {lengths.max()} tokens do not fit rows of {capacity}")
    orders, sizes = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
    for start in range(0, len(lengths), WINDOW):
        row_of = _pack_window(lengths[start : start + WINDOW], capacity)
        order = np.argsort(row_of, kind="stable")
        orders.append(order + start)
        sizes.append(np.bincount(row_of))
    return np.concatenate(orders), np.cumsum(np.concatenate(sizes))


def _pack_window(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Number of the packed row that each document goes to."""
    distinct, counts = np.unique(lengths, return_counts=True)
    rows = _Rows(capacity)
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        rows.place(length, count)
    row_of = np.empty(len(lengths), np.int64)
    row_of[np.argsort(-lengths.astype(np.int64), kind="stable")] = np.repeat(rows.taken, rows.num_taken)
    _, first = np.unique(row_of, return_index=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[row_of]


class _Rows:
    """Rows while they fill up. They are distinguished by number and found by the room that they have left."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._with_room: dict[int, list[int]] = {}  # room -> rows that have it
        self._rooms: list[int] = []  # keys of _with_room, ascending
        self._num_rows = 0
        self.taken: list[int] = []
        """Rows in the order in which they took documents, from the longest to the shortest."""
        self.num_taken: list[int] = []
        """Documents that each of them took at that time."""

    def place(self, length: int, count: int) -> None:
        """Find rows for `count` documents of one length."""
        while count:
            at = bisect_left(self._rooms, length)
            room = self._rooms[at] if at < len(self._rooms) else self._capacity
            num_each = room // length
            num_rows = -(-count // num_each)
            rows = self._take(at, num_rows) if at < len(self._rooms) else self._open(num_rows)
            last = min(count, num_each * len(rows)) - num_each * (len(rows) - 1)
            self.taken += rows
            self.num_taken += [num_each] * (len(rows) - 1) + [last]
            self._put_back(rows[:-1], room - num_each * length)
            self._put_back(rows[-1:], room - last * length)
            count -= num_each * (len(rows) - 1) + last

    def _open(self, num_rows: int) -> list[int]:
        self._num_rows += num_rows
        return list(range(self._num_rows - num_rows, self._num_rows))

    def _take(self, at: int, num_rows: int) -> list[int]:
        """Up to `num_rows` of the rows that have the room at this position, the last one put back first."""
        group = self._with_room[self._rooms[at]]
        rows = group[-num_rows:][::-1]
        del group[-num_rows:]
        if not group:
            del self._with_room[self._rooms.pop(at)]
        return rows

    def _put_back(self, rows: list[int], room: int) -> None:
        if not rows or not room:
            return
        if room not in self._with_room:
            self._with_room[room] = []
            insort(self._rooms, room)
        self._with_room[room] += rows


def unpacked(rows: Sequence[TokenRow]) -> list[PackedRow]:
    """One document a row."""
    return [PackedRow([*row.input_ids], [IGNORE_INDEX, *row.labels[1:]], [len(row.input_ids)]) for row in rows]
