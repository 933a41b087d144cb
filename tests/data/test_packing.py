"""Packing: every document once, whole, in few rows, always the same."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Place
from qlora_cli.data.packing import WINDOW, plan_packing, unpacked
from qlora_cli.data.token_row import TokenRow

LENGTHS = st.lists(st.integers(1, 64), max_size=80)


def make_rows(lengths):
    """Documents whose tokens are unique, so that each can be found again."""
    first = 0
    rows = []
    for number, length in enumerate(lengths, start=1):
        tokens = list(range(first, first + length))
        rows.append(TokenRow(tokens, [IGNORE_INDEX, *tokens[1:]], Place("test", number, number)))
        first += length
    return rows


def bins_of(lengths, capacity):
    """Document numbers of each packed row."""
    order, offsets = plan_packing(np.array(lengths, np.int64), capacity)
    assert offsets[0] == 0
    assert offsets[-1] == len(order) == len(lengths)
    return [order[start:end].tolist() for start, end in pairwise(offsets)]


@given(LENGTHS)
def test_every_document_is_in_exactly_one_row(lengths):
    assert sorted(number for row in bins_of(lengths, 64) for number in row) == [*range(len(lengths))]


@given(LENGTHS)
def test_no_row_is_longer_than_max_length(lengths):
    assert all(sum(lengths[number] for number in row) <= 64 for row in bins_of(lengths, 64))


def best_fit_decreasing(lengths, capacity):
    """The textbook loop over all bins."""
    bins = []
    for length in sorted(lengths, reverse=True):
        fitting = [content for content in bins if sum(content) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return sorted(map(sum, bins))


def one_by_one(lengths, capacity):
    """Best fit decreasing, one document after the other; of rows with equal room the one that got it last."""
    bins, bins_with_room, rooms = [], {}, []
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


@settings(deadline=None)
@given(LENGTHS)
def test_bins_are_filled_as_the_textbook_fills_them(lengths):
    ours = sorted(sum(lengths[item] for item in items) for items in bins_of(lengths, 64))
    assert ours == best_fit_decreasing(lengths, 64)


@given(LENGTHS, st.integers(64, 100))
def test_equal_lengths_placed_together_go_where_they_would_go_one_by_one(lengths, capacity):
    assert bins_of(lengths, capacity) == one_by_one(lengths, capacity)


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_window_goes_where_its_documents_would_go_one_by_one(seed):
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(4, 1, 4_000), 1, 512).astype(int).tolist()
    assert bins_of(lengths, 512) == one_by_one(lengths, 512)


def test_windows_are_packed_apart():
    lengths = np.full(WINDOW + 3, 4)
    lengths[WINDOW - 1] = 5
    order, offsets = plan_packing(lengths, 8)
    rows = np.split(order, offsets[1:-1])
    assert [row.tolist() for row in rows[-3:]] == [[WINDOW - 1], [WINDOW, WINDOW + 1], [WINDOW + 2]]
    assert np.array_equal(np.sort(order), np.arange(WINDOW + 3))


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_lengths_of_any_integer_type_are_planned(dtype):
    order, offsets = plan_packing(np.array([3, 5, 2, 6], dtype), 8)
    assert (order.tolist(), offsets.tolist()) == ([0, 1, 2, 3], [0, 2, 4])
    assert order.dtype == offsets.dtype == np.int64


def test_a_document_longer_than_a_row_is_the_callers_mistake():
    with pytest.raises(ValueError, match="9 to 9 tokens do not fit rows of 8"):
        plan_packing(np.array([9]), 8)


def test_a_document_without_tokens_is_the_callers_mistake():
    with pytest.raises(ValueError, match="0 to 4 tokens do not fit"):
        plan_packing(np.array([4, 0]), 8)


def test_the_first_label_of_every_document_is_ignored_even_if_it_was_not_before():
    row = TokenRow([5, 6], [5, 6], Place("test", 1, 1))
    assert unpacked([row])[0].labels == [IGNORE_INDEX, 6]


def test_unpacked_rows_hold_one_document_each():
    assert [row.seq_lengths for row in unpacked(make_rows([3, 2]))] == [[3], [2]]


def test_no_document_makes_no_row():
    assert bins_of([], 8) == []
