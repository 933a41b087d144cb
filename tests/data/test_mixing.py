"""Mixes: each source has the share that was asked for, rows repeat evenly, and the seed decides all of it."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from qlora_cli.data.mixing import Share, hold_out, mix, shares
from qlora_cli.errors import DataError

SOURCES = st.lists(
    st.tuples(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.floats(0.05, 20)), min_size=2, max_size=4
)
MIX = st.tuples(st.sampled_from(["rows", "tokens"]), st.sampled_from(["first_exhausted", "all_exhausted"]))


def mixed(sources, mix_by=None, stopping_strategy="first_exhausted", seed=0):
    num_tokens = [np.array(tokens, np.int32) for tokens, _ in sources]
    weights = [weight for _, weight in sources]
    return mix(num_tokens, weights, mix_by=mix_by, stopping_strategy=stopping_strategy, seed=seed)


def mixed_if_possible(sources, mix_by, stopping_strategy):
    """The mix; hypothesis looks for another where a source would give no row, or repeat a thousand times."""
    try:
        return mixed(sources, mix_by, stopping_strategy)
    except DataError:
        reject()


def rows_of(count, weight):
    return ([7] * count, weight)


def size_of(tokens, mix_by):
    return len(tokens) if mix_by == "rows" else sum(tokens)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5), (2.3, 0.001), (0.25, 17.9)])
def test_weights_alone_are_repeats_as_they_ever_were(weights):
    """The samples of an earlier version, so that its runs can be made again."""
    sizes = (10, 41)
    expected = []
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        fraction, repeats = math.modf(weight)
        part = random.Random(f"weight 5 {number}").sample(range(size), round(fraction * size))
        expected.append([*range(size)] * int(repeats) + sorted(part))
    found = mixed([rows_of(size, weight) for size, weight in zip(sizes, weights, strict=True)], seed=5)
    assert [numbers.tolist() for numbers in found] == expected
    assert all(numbers.dtype == np.int64 for numbers in found)


@pytest.mark.parametrize(
    ("stopping_strategy", "counts"), [("first_exhausted", [30, 90]), ("all_exhausted", [100, 300])]
)
def test_shares_of_rows_are_those_of_the_table(stopping_strategy, counts):
    found = mixed([rows_of(30, 1), rows_of(300, 3)], "rows", stopping_strategy)
    assert [len(numbers) for numbers in found] == counts


def test_shares_of_tokens_count_tokens():
    [a, b] = mixed([([10] * 30, 1), ([100] * 300, 3)], "tokens")
    assert (len(a), len(b)) == (30, 9)


@given(SOURCES, MIX)
def test_each_source_has_its_share_to_half_a_row_or_half_of_its_tokens(sources, how):
    mix_by, stopping_strategy = how
    take = min if stopping_strategy == "first_exhausted" else max
    total = take(size_of(tokens, mix_by) / weight for tokens, weight in sources)
    found = mixed_if_possible(sources, mix_by, stopping_strategy)
    for (tokens, weight), numbers in zip(sources, found, strict=True):
        realised = size_of([tokens[number] for number in numbers], mix_by)
        off_by = 0.5 if mix_by == "rows" else max(tokens) / 2
        assert abs(realised - weight * total) <= off_by + 1e-6


@given(SOURCES, st.sampled_from(["rows", "tokens"]))
def test_first_exhausted_shows_no_row_twice_and_one_source_whole(sources, mix_by):
    found = mixed_if_possible(sources, mix_by, "first_exhausted")
    assert all(len(set(numbers.tolist())) == len(numbers) for numbers in found)
    assert any(len(numbers) == len(tokens) for (tokens, _), numbers in zip(sources, found, strict=True))


@given(SOURCES, st.sampled_from(["rows", "tokens"]))
def test_all_exhausted_shows_every_row_and_repeats_evenly(sources, mix_by):
    found = mixed_if_possible(sources, mix_by, "all_exhausted")
    for (tokens, _), numbers in zip(sources, found, strict=True):
        times = Counter(numbers.tolist())
        assert set(times) == set(range(len(tokens)))
        assert max(times.values()) - min(times.values()) <= 1


@given(SOURCES, MIX)
def test_passes_come_one_after_the_other_each_ascending(sources, how):
    found = mixed_if_possible(sources, *how)
    for (tokens, _), numbers in zip(sources, found, strict=True):
        passes, part = divmod(len(numbers), len(tokens))
        assert numbers[: passes * len(tokens)].tolist() == [*range(len(tokens))] * passes
        assert (np.diff(numbers[len(numbers) - part :]) > 0).all()


@pytest.mark.parametrize("mix_by", [None, "rows", "tokens"])
def test_the_seed_chooses_the_rows(mix_by):
    sources = [rows_of(40, 0.5), rows_of(100, 0.7)]
    one, again, other = (mixed(sources, mix_by, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one[1], again[1])
    assert not np.array_equal(one[1], other[1])


@pytest.mark.parametrize("mix_by", ["rows", "tokens"])
def test_a_source_that_lost_all_rows_is_refused(mix_by):
    with pytest.raises(DataError, match=r"source 2 of data\.train has no row left"):
        mixed([rows_of(5, 1), rows_of(0, 1)], mix_by)


def test_a_source_whose_share_is_no_row_is_refused():
    with pytest.raises(DataError, match=r"source 2 of data\.train would give no row: its share is 0\.03 rows"):
        mixed([rows_of(3, 1), rows_of(300, 0.01)], "rows")


def test_a_source_that_would_repeat_without_end_is_refused():
    with pytest.raises(DataError, match=r"source 1 of data\.train would be seen 20,000 times an epoch"):
        mixed([rows_of(1, 100), rows_of(200, 1)], "rows", "all_exhausted")


def test_no_source_makes_no_mix():
    assert mixed([]) == []


def test_shares_tell_rows_and_tokens():
    num_tokens = [np.array([1, 2]), np.array([4] * 8)]
    first, second = shares(num_tokens, [np.array([0, 1, 0]), np.array([0, 1, 2])])
    assert first == Share(3, 4, 0.5, 0.25)
    assert second == Share(3, 12, 0.5, 0.75)


def test_a_source_without_rows_has_no_share():
    assert shares([np.array([], np.int32)], [np.array([], np.int64)]) == [Share(0, 0, 0.0, 0.0)]


def digests_of(*sources):
    """Digests whose first half is the same for all rows, so that both halves count."""
    return [np.array([[7, number] for number in numbers], np.uint64).reshape(-1, 2) for numbers in sources]


ROWS = st.lists(st.lists(st.integers(0, 12), max_size=20), min_size=1, max_size=3)


@given(ROWS, st.floats(0.01, 0.99), st.integers(0, 3))
def test_held_out_rows_are_those_that_ever_were(sources, fraction, seed):
    """One copy of each chosen row, chosen among different rows in the order in which they first come."""
    different = list(dict.fromkeys(number for numbers in sources for number in numbers))
    num_held_out = max(1, round(fraction * len(different)))
    if num_held_out >= len(different):
        with pytest.raises(DataError, match=f"leaves none of {len(different)} different rows"):
            hold_out(digests_of(*sources), fraction, seed)
        return
    chosen = set(random.Random(f"eval {seed}").sample(different, num_held_out))
    train, held_out = hold_out(digests_of(*sources), fraction, seed)
    for numbers, rows in zip(sources, train, strict=True):
        assert rows.tolist() == [at for at, number in enumerate(numbers) if number not in chosen]
    found = [numbers[at] for numbers, rows in zip(sources, held_out, strict=True) for at in rows]
    assert found == [number for number in different if number in chosen]
    assert all(numbers.index(numbers[at]) == at for numbers, rows in zip(sources, held_out, strict=True) for at in rows)


def test_digests_that_end_in_zero_bytes_are_told_apart():
    digests = np.array([[1, 0], [1 << 56, 0], [0, 1], [1, 1]], np.uint64)
    train, held_out = hold_out([digests], 0.5, 0)
    assert (len(train[0]), len(held_out[0])) == (2, 2)
