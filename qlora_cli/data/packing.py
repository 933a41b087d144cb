"""Documents into rows of `max_length` tokens: whole documents, as little padding as possible."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_cli.data.token_row import IGNORE_INDEX, TokenRow


@dataclass(slots=True)
class PackedRow:
    """One row of the batch: documents one after the other."""

    input_ids: list[int]
    labels: list[int]
    """The first label of every document is IGNORE_INDEX: the token before it is another document's."""

    seq_lengths: list[int]
    """Tokens of each document, in order."""


def assign_bins(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: longest first, each into the fullest bin that still has room (Johnson 1973).

    Args:
        lengths: size of each item, at most `capacity`.
        capacity: size of a bin.

    Returns:
        Item numbers of each bin, ascending; bins in the order of their first item.

    >>> assign_bins([3, 5, 2, 6], capacity=8)
    [[0, 1], [2, 3]]

    Raises:
        ValueError: if an item is larger than a bin.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"an item of {max(lengths)} does not fit a bin of {capacity}")
    bins: list[list[int]] = []
    bins_with_room: dict[int, list[int]] = {}  # free space -> numbers of the bins that have it
    rooms: list[int] = []  # the keys of bins_with_room, ascending; at most `capacity` of them
    for item in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        at = bisect_left(rooms, lengths[item])
        if at == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[at]
            number = bins_with_room[room].pop()
            if not bins_with_room[room]:
                del bins_with_room[room], rooms[at]
        bins[number].append(item)
        left = room - lengths[item]
        if left:
            if left not in bins_with_room:
                bins_with_room[left] = []
                insort(rooms, left)
            bins_with_room[left].append(number)
    return sorted(map(sorted, bins))


def pack(rows: Sequence[TokenRow], max_length: int) -> list[PackedRow]:
    """Rows of at most `max_length` tokens; every document is in one of them, whole.

    Raises:
        ValueError: if a document is longer than `max_length`.
    """
    bins = assign_bins([len(row.input_ids) for row in rows], max_length)
    return [_join([rows[number] for number in members]) for members in bins]


def unpacked(rows: Sequence[TokenRow]) -> list[PackedRow]:
    """One document a row."""
    return [_join([row]) for row in rows]


def _join(documents: Sequence[TokenRow]) -> PackedRow:
    packed = PackedRow([], [], [])
    for document in documents:
        first = len(packed.input_ids)
        packed.input_ids += document.input_ids
        packed.labels += document.labels
        packed.labels[first] = IGNORE_INDEX
        packed.seq_lengths.append(len(document.input_ids))
    return packed
