"""How small a true difference would have been seen, and how many more questions would show half of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm

POWER = 0.8


@dataclass(frozen=True)
class Sensitivity:
    """What a number of questions can show."""

    smallest: float
    """Smallest true difference that is found in 80% of repetitions; infinite where none would be."""

    rows_for_half: int
    """Additional questions with which half of that would be found as often."""


def of_rows(standard_error: float, reach: float, num_rows: int, level: float) -> Sensitivity:
    """Of a mean or ratio over rows: how far its interval reaches, and what the spread needs for the power.

    With an interval by the normal distribution this is (1.96 + 0.84) standard errors (Miller 2024, arXiv:2411.00640,
    section 5). It falls with the square root of the number of rows, so that half of it takes four times as many.

    Args:
        standard_error: of the difference.
        reach: from the difference to the edge of its 95% interval that is further away.
        num_rows: rows compared.
        level: of the test; the interval is stretched to it.

    >>> sensitivity = of_rows(0.01, 1.96 * 0.01, 100, level=0.05)
    >>> round(sensitivity.smallest, 4), sensitivity.rows_for_half
    (0.028, 300)
    """
    if standard_error == 0:
        return Sensitivity(math.inf, 0)
    stretched = reach * float(norm.ppf(1 - level / 2) / norm.ppf(0.975))
    return Sensitivity(stretched + float(norm.ppf(POWER)) * standard_error, 3 * num_rows)


def of_signs(num_changed: int, num_questions: int, level: float) -> Sensitivity:
    """Of the exact sign test, where that many of the questions are answered differently by the two models."""
    # One changed question more, so that a share of 0 out of few questions is not taken for a certain 0.
    changed = (num_changed + 1) / (num_questions + 2)
    smallest = _least(lambda delta: sign_power(num_questions, max(changed, delta), delta, level), 0.0, 1.0)
    if math.isinf(smallest):
        return Sensitivity(math.inf, _questions_for(0.5, 0.5, level) - num_questions)
    half = smallest / 2
    needed = _questions_for(max(changed, half), half, level)
    return Sensitivity(smallest, max(1, needed - num_questions))


def sign_power(num_questions: int, changed: float, delta: float, level: float) -> float:
    """Probability that the exact two-sided sign test finds a difference.

    Args:
        num_questions: all questions.
        changed: probability that the two models differ on a question.
        delta: probability of a gain less that of a loss, at most `changed`.
        level: of the test.

    >>> round(sign_power(100, changed=0.3, delta=0.2, level=0.05), 3)
    0.961
    """
    gain = 0.5 + delta / (2 * changed)
    low, high = binom.ppf([1e-9, 1 - 1e-9], num_questions, changed)
    numbers = np.arange(max(1, int(low)), int(high) + 1)
    fewest = binom.ppf(level / 2, numbers, 0.5)
    fewest = np.where(binom.cdf(fewest, numbers, 0.5) > level / 2, fewest - 1, fewest)
    found = binom.cdf(fewest, numbers, gain) + binom.sf(numbers - fewest - 1, numbers, gain)
    return float(binom.pmf(numbers, num_questions, changed) @ np.where(fewest >= 0, found, 0.0))


def _least(power: Callable[[float], float], low: float, high: float) -> float:
    """Least argument with enough power between two; infinite where the upper one has too little."""
    if power(high) < POWER:
        return math.inf
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _questions_for(changed: float, delta: float, level: float) -> int:
    """Least number of questions that show `delta` with enough power, to 1 in 1,000."""
    high = 1
    while sign_power(high, changed, delta, level) < POWER:
        high *= 2
    low = high // 2
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if sign_power(middle, changed, delta, level) >= POWER else (middle, high)
    return high
