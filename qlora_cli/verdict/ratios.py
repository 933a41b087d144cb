"""Means and ratios over rows: a loss per token over rows of different length, a score from 0 to 1.

The unit that is drawn again is the row, never the token: tokens of a row go together. The figure is
R = sum(values) / sum(weights), its standard error that of the row residuals (Cochran 1977, section 6.3; with equal
weights the paired standard error of Miller 2024, arXiv:2411.00640, equation 7, with Q - 1 for Q), and its interval a
studentized bootstrap (Efron and Tibshirani 1993, section 12.5).
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
"""With fewer rows too many resamples are degenerate, with more the bootstrap shows nothing new: Student's t is used."""

BLOCK_NUMBERS = 4_000_000


@dataclass(frozen=True)
class RowComparison:
    """Difference of two figures over the same rows."""

    difference: float
    low: float
    high: float
    p_value: float
    standard_error: float


def compare_rows(differences: np.ndarray, weights: np.ndarray) -> RowComparison:
    """sum(differences) / sum(weights), with a 95 % interval and the p value of 0.

    Args:
        differences: (Q,) after - before of each row.
        weights: (Q,), all positive.
    """
    estimate = float(differences.sum() / weights.sum())
    error = standard_error(differences, weights)
    if len(differences) == 1:
        return RowComparison(estimate, -math.inf, math.inf, 1.0, math.inf)
    if error <= 1e-12 * abs(estimate):
        # Every row moved by the same amount: what is left to go by is that all moved the same way.
        p_value = 1.0 if estimate == 0 else 2.0 ** (1 - len(differences))
        edges = (estimate, estimate) if p_value < 0.05 else (min(estimate, 0.0), max(estimate, 0.0))
        return RowComparison(estimate, *edges, p_value, 0.0)
    pivots = studentized_pivots(differences, weights)
    low, high = _edges(estimate, error, pivots, len(differences))
    return RowComparison(estimate, low, high, _p_value(estimate / error, pivots, len(differences)), error)


def ratio_interval(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """95 % interval of sum(values) / sum(weights)."""
    found = compare_rows(values, weights)
    if found.standard_error == 0:
        return found.difference, found.difference
    return found.low, found.high


def standard_error(values: np.ndarray, weights: np.ndarray) -> float:
    """Standard error of sum(values) / sum(weights) over rows; infinite for one row.

    >>> values = np.array([1.0, 2.0, 4.0])
    >>> round(standard_error(values, np.ones(3)), 4), round(float(values.std(ddof=1)) / 3**0.5, 4)
    (0.8819, 0.8819)
    """
    count = len(values)
    if count == 1:
        return math.inf
    residuals = values - weights * values.sum() / weights.sum()
    return math.sqrt(count / (count - 1) * float(residuals @ residuals)) / float(weights.sum())


def studentized_pivots(values: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """(resample - figure) / standard error of each resample, sorted; None where Student's t takes their place."""
    count = len(values)
    if not MIN_ROWS <= count <= MAX_ROWS:
        return None
    residuals = values - weights * values.sum() / weights.sum()
    columns = np.stack([residuals, weights, residuals**2, residuals * weights, weights**2], axis=1)
    pivots = []
    for counts_BQ in _resamples(count):
        r, w, rr, rw, ww = (counts_BQ @ columns).T
        shift = r / w  # the resample's figure less the figure
        square = np.maximum(rr - 2 * shift * rw + shift**2 * ww, 0.0)
        errors = np.sqrt(count / (count - 1) * square) / w
        with np.errstate(divide="ignore", invalid="ignore"):
            pivots.append(np.where(square > 0, shift / errors, np.sign(shift) * np.inf))
    found = np.concatenate(pivots)
    return np.sort(np.where(np.isnan(found), 0.0, found))


def _resamples(count: int) -> Iterator[np.ndarray]:
    """How often each row is in each resample: blocks of shape (B, Q)."""
    random = np.random.default_rng(SEED)
    block = max(1, BLOCK_NUMBERS // count)
    for start in range(0, NUM_RESAMPLES, block):
        size = min(block, NUM_RESAMPLES - start)
        drawn = random.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _edges(estimate: float, error: float, pivots: np.ndarray | None, count: int) -> tuple[float, float]:
    if pivots is None:
        half = float(student.ppf(0.975, count - 1)) * error
        return estimate - half, estimate + half
    rank = math.floor(0.025 * (NUM_RESAMPLES + 1))  # the 250th from either end
    return estimate - float(pivots[-rank]) * error, estimate - float(pivots[rank - 1]) * error


def _p_value(pivot: float, pivots: np.ndarray | None, count: int) -> float:
    """Twice the smaller share of pivots beyond the one seen, itself counted in (Davison and Hinkley 1997, 4.11)."""
    if pivots is None:
        return 2 * float(student.sf(abs(pivot), count - 1))
    above = len(pivots) - int(np.searchsorted(pivots, pivot, "left"))
    below = int(np.searchsorted(pivots, pivot, "right"))
    return min(1.0, 2 * (1 + min(above, below)) / (len(pivots) + 1))
