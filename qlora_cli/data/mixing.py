"""Choice of the rows of each source that an epoch sees, and of those held out; all of it follows from the seed.

Without `mix_by` a weight says how often each row is seen. With it, a weight is the source's share of the rows or
tokens, relative to the other weights; the total is then the largest in which no row comes twice (first_exhausted), or
the smallest in which every row comes (all_exhausted):

    source    rows    weight    share    first_exhausted    all_exhausted
    a           30         1     0.25                 30              100
    b          300         3     0.75                 90              300
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from qlora_cli.errors import DataError

Unit = Literal["rows", "tokens"]
Stop = Literal["first_exhausted", "all_exhausted"]

Numbers = np.ndarray
"""Row numbers of one source, from 0; int64."""

MAX_REPEATS = 1000
"""Times a row may be seen in an epoch, as the largest weight; more would be a mistake."""


@dataclass(frozen=True)
class Share:
    """Share of one source in the rows seen in an epoch."""

    rows: int
    tokens: int
    share_of_rows: float
    share_of_tokens: float


def mix(
    num_tokens: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    mix_by: Unit | None,
    stopping_strategy: Stop,
    seed: int,
) -> list[Numbers]:
    """The rows of each source that are seen in an epoch.

    Args:
        num_tokens: of each row of each source.
        weights: of each source.
        mix_by: what shares are counted in; None where weights are repeats.
        stopping_strategy: which total to take, under `mix_by`.
        seed: chooses the rows of a part of a pass.

    Returns:
        Row numbers of each source, pass after pass: all of them as often as they come whole, then those of the last
        part, each ascending. Sources have their share of the total to half a row, or half of a row's tokens.

    Raises:
        DataError: under `mix_by`, a source that has no row, would give none, or would repeat too often.
    """
    sizes = [float(len(tokens) if mix_by != "tokens" else tokens.sum(dtype=np.int64)) for tokens in num_tokens]
    targets = _targets(sizes, weights, stopping_strategy) if mix_by else []
    chosen = []
    for number, tokens in enumerate(num_tokens):
        sample = random.Random(f"weight {seed} {number}").sample
        every = range(len(tokens))
        passes: float
        if mix_by is None:
            fraction, passes = math.modf(weights[number])
            part = sample(every, round(fraction * len(tokens)))
        elif mix_by == "rows":
            passes, num_more = divmod(round(targets[number]), len(tokens))
            part = sample(every, num_more)
        else:
            passes, num_more_tokens = divmod(targets[number], sizes[number])
            part = _worth(tokens, num_more_tokens, sample(every, len(tokens)))
        if mix_by and not passes and not part:
            raise DataError(
                f"source {number + 1} of data.train would give no row: its share is {targets[number]:.2g} {mix_by}",
                hint="raise its `weight`, or write `stopping_strategy: all_exhausted`",
            )
        whole = np.tile(np.arange(len(tokens), dtype=np.int64), int(passes))
        chosen.append(np.concatenate([whole, np.sort(np.array(part, np.int64))]))
    return chosen


def _targets(sizes: Sequence[float], weights: Sequence[float], stopping_strategy: Stop) -> list[float]:
    """Rows or tokens that each source is to give."""
    for number, size in enumerate(sizes, start=1):
        if not size:
            raise DataError(
                f"source {number} of data.train has no row left, so it cannot have a share",
                hint="take the source out, or see with `qlora data check` what became of its rows",
            )
    take = min if stopping_strategy == "first_exhausted" else max
    unit = take(size / weight for size, weight in zip(sizes, weights, strict=True))  # of weight 1
    targets = [unit * weight for weight in weights]
    for number, (target, size) in enumerate(zip(targets, sizes, strict=True), start=1):
        if target > MAX_REPEATS * size:
            raise DataError(
                f"source {number} of data.train would be seen {target / size:,.0f} times an epoch",
                hint="lower its `weight`, or write `stopping_strategy: first_exhausted`",
            )
    return targets


def _worth(num_tokens: np.ndarray, target: float, order: Sequence[int]) -> list[int]:
    """The first rows of an order whose tokens come closest to the target.

    >>> _worth(np.array([5, 3, 4]), 8.0, [2, 0, 1])
    [2, 0]
    """
    sums = np.concatenate([[0], np.cumsum(num_tokens[list(order)], dtype=np.int64)])
    return list(order[: int(np.argmin(np.abs(sums - target)))])


def hold_out(
    digests: Sequence[np.ndarray], fraction: float, seed: int, conversations: np.ndarray | None = None
) -> tuple[list[Numbers], list[Numbers]]:
    """Part the rows of all sources into those that are trained on and those that are held out.

    Rows of the same digest stay together, so that none is on both sides; of those held out the first copy is taken.

    Args:
        digests: of each row of each source, (rows, 2) of uint64.
        fraction: of the different rows, how many to hold out; at least one is.
        seed: chooses them.
        conversations: number of each row's conversation, where several rows come from one; they stay together.

    Returns:
        Row numbers of each source to train on, and to hold out; ascending.

    Raises:
        DataError: nothing would be left to train on.
    """
    first_copy = _first_copies(np.concatenate(digests))
    is_first = first_copy == np.arange(len(first_copy))
    together = first_copy if conversations is None else _kept_together(first_copy, conversations)
    documents = np.flatnonzero(together == np.arange(len(together)))
    num_held_out = max(1, round(fraction * len(documents)))
    if num_held_out >= len(documents):
        raise DataError(
            f"eval_fraction {fraction} leaves none of {len(documents)} different rows to train on",
            hint="lower `data.eval_fraction` or name a `data.eval` file",
        )
    is_chosen = np.zeros(len(first_copy), bool)
    is_chosen[documents[random.Random(f"eval {seed}").sample(range(len(documents)), num_held_out)]] = True
    is_held_out = is_chosen[together]
    bounds = list(accumulate(map(len, digests)))[:-1]
    train = [np.flatnonzero(part) for part in np.split(~is_held_out, bounds)]
    held_out = [np.flatnonzero(part) for part in np.split(is_held_out & is_first, bounds)]
    return train, held_out


def _first_copies(digests: np.ndarray) -> np.ndarray:
    """For each row the number of the first row of the same digest.

    >>> _first_copies(np.array([[7, 1], [7, 2], [7, 1]], np.uint64)).tolist()
    [0, 1, 0]
    """
    order = np.lexsort((digests[:, 0], digests[:, 1]))  # stable: copies keep their order
    ordered = digests[order]
    starts = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1)))[: len(order)]
    first_copy = np.empty(len(order), np.int64)
    first_copy[order] = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    return first_copy


def _kept_together(first_copy: np.ndarray, conversations: np.ndarray) -> np.ndarray:
    """For each row the first of all rows that share a conversation or a copy with it, whatever the chain between.

    >>> _kept_together(np.array([0, 1, 2, 1]), np.array([0, 0, 1, 2])).tolist()
    [0, 0, 2, 0]
    """
    together = first_copy
    while True:
        least = np.full(len(together), len(together))
        np.minimum.at(least, conversations, together)
        joined = least[conversations]
        least = np.full(len(together), len(together))
        np.minimum.at(least, first_copy, joined)
        joined = least[first_copy]
        if (joined == together).all():
            return joined
        together = joined


def shares(num_tokens: Sequence[np.ndarray], chosen: Sequence[Numbers]) -> list[Share]:
    """Share of each source in the rows seen in an epoch.

    Args:
        num_tokens: of each row of each source.
        chosen: row numbers of each source, as `mix` returns them.
    """
    rows = [len(numbers) for numbers in chosen]
    tokens = [int(every[numbers].sum(dtype=np.int64)) for every, numbers in zip(num_tokens, chosen, strict=True)]
    return [
        Share(
            rows=rows[at],
            tokens=tokens[at],
            share_of_rows=rows[at] / sum(rows) if rows[at] else 0.0,
            share_of_tokens=tokens[at] / sum(tokens) if tokens[at] else 0.0,
        )
        for at in range(len(rows))
    ]
