"""Packing: every document once, whole, in few rows, always the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_cli.data.example import Place
from qlora_cli.data.packing import assign_bins, pack, unpacked
from qlora_cli.data.token_row import IGNORE_INDEX, TokenRow

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


def documents(packed):
    """(tokens, labels) of every document of the packed rows."""
    found = []
    for row in packed:
        assert sum(row.seq_lengths) == len(row.input_ids) == len(row.labels)
        start = 0
        for length in row.seq_lengths:
            found.append((row.input_ids[start : start + length], row.labels[start : start + length]))
            start += length
    return found


@given(LENGTHS)
def test_every_document_is_in_exactly_one_row_with_its_labels(lengths):
    rows = make_rows(lengths)
    assert sorted(documents(pack(rows, 64))) == sorted((row.input_ids, row.labels) for row in rows)


@given(LENGTHS)
def test_no_row_is_longer_than_max_length(lengths):
    assert all(len(row.input_ids) <= 64 for row in pack(make_rows(lengths), 64))


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


@settings(deadline=None)
@given(LENGTHS)
def test_bins_are_filled_as_the_textbook_fills_them(lengths):
    ours = sorted(sum(lengths[item] for item in items) for items in assign_bins(lengths, 64))
    assert ours == best_fit_decreasing(lengths, 64)


def test_a_document_longer_than_a_row_is_the_callers_mistake():
    with pytest.raises(ValueError, match="9 does not fit a bin of 8"):
        pack(make_rows([9]), 8)


def test_the_first_label_of_every_document_is_ignored_even_if_it_was_not_before():
    row = TokenRow([5, 6], [5, 6], Place("test", 1, 1))
    assert pack([row, row], 4)[0].labels == [IGNORE_INDEX, 6, IGNORE_INDEX, 6]


def test_unpacked_rows_hold_one_document_each():
    assert [row.seq_lengths for row in unpacked(make_rows([3, 2]))] == [[3], [2]]


def test_no_document_makes_no_row():
    assert pack([], 8) == []
