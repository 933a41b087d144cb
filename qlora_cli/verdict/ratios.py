"""Means and ratios over rows: a loss per token over rows of different length, a score from 0 to 1.

The unit is the row, never the token: tokens of a row go together. The figure is R = sum(values) / sum(weights). Its
standard error is the jackknife's over rows (Efron and Tibshirani 1993, section 11.5), which with equal weights is the
paired standard error of Miller 2024 (arXiv:2411.00640, section 4.2).

Each edge of an interval is the wider one of two: Student's t, which misses where rows are skewed, and the studentized
bootstrap (Efron and Tibshirani 1993, section 12.5), which misses where few distinct values occur. Percentile and BCa
intervals cover less than either with 50 rows; `benchmarks/verdicts.py` has the figures.
"""

# Q = rows, B = resamples in a block

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

NUM_RESAMPLES = 9_999
SEED = 20_240_611
"""Resamples are drawn from the same seed each time, so that the same values have the same interval."""

MIN_ROWS = 10
MAX_ROWS = 10_000
"""With fewer rows many resamples are degenerate, with more the bootstrap shows nothing new: Student's t is left."""

MIN_CHANGED = 20
"""With fewer rows that differ at all, two rows are added before Student's t: `_with_two_more`."""

BLOCK_NUMBERS = 4_000_000


@dataclass(frozen=True)
class RowComparison:
    """Difference of two figures over the same rows."""

    difference: float
    low: float
    high: float
    p_value: float
    standard_error: float

    @property
    def reach(self) -> float:
        """From the difference to the edge of the interval that is further away."""
        return max(self.difference - self.low, self.high - self.difference)


def compare_rows(differences: np.ndarray, weights: np.ndarray, largest: float | None = None) -> RowComparison:
    """sum(differences) / sum(weights), with a 95% interval and the p value of 0.

    Args:
        differences: (Q,) after - before of each row.
        weights: (Q,), all positive.
        largest: that one row's difference can have; None where there is no limit.
    """
    estimate = float(differences.sum() / weights.sum())
    if len(differences) == 1:
        return RowComparison(estimate, -math.inf, math.inf, 1.0, math.inf)
    num_changed = int(np.count_nonzero(differences))
    if num_changed < min(MIN_CHANGED, len(differences)) and (num_changed or largest is not None):
        found = _by_student(*_with_two_more(differences, weights, largest))
        return RowComparison(estimate, found.low, found.high, found.p_value, found.standard_error)
    if standard_error(differences, weights) <= 1e-12 * abs(estimate):
        return _all_alike(estimate, len(differences))
    found = _by_student(differences, weights)
    if not MIN_ROWS <= len(differences) <= MAX_ROWS:
        return found
    return _widened(found, studentized_pivots(differences, weights))


def ratio_interval(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """95% interval of sum(values) / sum(weights)."""
    found = compare_rows(values, weights)
    if found.standard_error == 0:
        return found.difference, found.difference
    return found.low, found.high


def standard_error(values: np.ndarray, weights: np.ndarray) -> float:
    """Standard error of sum(values) / sum(weights), by leaving out each of two or more rows in turn.

    >>> values = np.array([1.0, 2.0, 4.0])
    >>> round(standard_error(values, np.ones(3)), 4), round(float(values.std(ddof=1)) / 3**0.5, 4)
    (0.8819, 0.8819)
    """
    count, total = len(values), weights.sum()
    shifts = (values - weights * values.sum() / total) / (total - weights)
    return math.sqrt((count - 1) / count * float(shifts @ shifts))


def studentized_pivots(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(resample - figure) / standard error of the resample for each resample, sorted."""
    count = len(values)
    residuals = values - weights * values.sum() / weights.sum()
    columns = np.stack([residuals, weights, residuals**2, residuals * weights, weights**2], axis=1)
    pivots = []
    for counts_BQ in _resamples(count):
        r, w, rr, rw, ww = (counts_BQ @ columns).T
        shift = r / w
        square = np.maximum(rr - 2 * shift * rw + shift**2 * ww, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            pivots.append(r / np.sqrt(count / (count - 1) * square))
    found = np.concatenate(pivots)
    return np.sort(found[np.isfinite(found)])


def _resamples(count: int) -> Iterator[np.ndarray]:
    """How often each row is in each resample: blocks of shape (B, Q)."""
    random = np.random.default_rng(SEED)
    block = max(1, BLOCK_NUMBERS // count)
    for start in range(0, NUM_RESAMPLES, block):
        size = min(block, NUM_RESAMPLES - start)
        drawn = random.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _by_student(differences: np.ndarray, weights: np.ndarray) -> RowComparison:
    estimate, error = float(differences.sum() / weights.sum()), standard_error(differences, weights)
    degrees = len(differences) - 1
    half = float(student.ppf(0.975, degrees)) * error
    p_value = 2 * float(student.sf(abs(estimate) / error, degrees))
    return RowComparison(estimate, estimate - half, estimate + half, p_value, error)


def _widened(found: RowComparison, pivots: np.ndarray) -> RowComparison:
    """`found` with each edge where the bootstrap has it, if that is further out, and the larger p value."""
    rank = math.floor(0.025 * (len(pivots) + 1))
    low = found.difference - float(pivots[-rank]) * found.standard_error
    high = found.difference - float(pivots[rank - 1]) * found.standard_error
    pivot = found.difference / found.standard_error
    above = len(pivots) - int(np.searchsorted(pivots, pivot, "left"))
    below = int(np.searchsorted(pivots, pivot, "right"))
    # The one seen is counted in (Davison and Hinkley 1997, equation 4.11).
    p_value = min(1.0, 2 * (1 + min(above, below)) / (len(pivots) + 1))
    return RowComparison(
        found.difference,
        min(low, found.low),
        max(high, found.high),
        max(p_value, found.p_value),
        found.standard_error,
    )


def _with_two_more(
    differences: np.ndarray, weights: np.ndarray, largest: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows and two more, one up and one down by the root mean square of the changes, and of the mean weight.

    It is what Agresti and Min (2005) and Bonett and Price (2012) do with right and wrong answers, in the unit of the
    changes at hand. Where no row changed at all the two move by `largest`, so that the interval has a width.
    """
    changed = differences[differences != 0]
    size = math.sqrt(float(changed @ changed) / len(changed)) if len(changed) else largest or 0.0
    return np.append(differences, [size, -size]), np.append(weights, [weights.mean()] * 2)


def _all_alike(estimate: float, count: int) -> RowComparison:
    """Rows that all moved by the same amount: all that is left to go by is that they moved the same way."""
    p_value = 1.0 if estimate == 0 else 2.0 ** (1 - count)
    low, high = (estimate, estimate) if p_value < 0.05 else (min(estimate, 0.0), max(estimate, 0.0))
    return RowComparison(estimate, low, high, p_value, 0.0)
