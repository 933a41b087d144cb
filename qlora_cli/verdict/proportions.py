"""Right and wrong answers: shares, and the difference of two shares on the same questions."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.stats import binom, norm

Z = float(norm.ppf(0.975))
"""1.96: 95 % of a normal distribution lie within so many standard deviations."""


def share_interval(num_right: int, num_questions: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927).

    >>> [round(edge, 3) for edge in share_interval(0, 20)]
    [0.0, 0.161]
    """
    share, spread = num_right / num_questions, Z**2 / num_questions
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def exact_sign_p_value(num_gained: int, num_lost: int) -> float:
    """Two-sided p of as uneven a split, or more so, if gains and losses were equally likely.

    This is McNemar's test by the binomial distribution: questions that both models answer alike say nothing.

    >>> exact_sign_p_value(9, 1)
    0.021484375
    """
    fewer = min(num_gained, num_lost)
    return min(1.0, 2 * float(binom.cdf(fewer, num_gained + num_lost, 0.5)))


def score_interval(num_gained: int, num_lost: int, num_questions: int) -> tuple[float, float]:
    """95 % score interval of the difference of two shares on the same questions (Tango 1998).

    It holds each difference that a score test at 5 % does not reject. It needs no correction where few questions
    changed, and has a width where none did.

    >>> [round(edge, 4) for edge in score_interval(num_gained=43, num_lost=18, num_questions=100)]
    [0.0995, 0.3882]
    """
    difference = (num_gained - num_lost) / num_questions

    def excess(delta: float) -> float:
        variance = _variance(delta, num_gained, num_lost, num_questions)
        return num_questions * (difference - delta) ** 2 - Z**2 * variance

    return _edge(excess, difference, -1.0), _edge(excess, difference, 1.0)


def _variance(delta: float, num_gained: int, num_lost: int, num_questions: int) -> float:
    """Variance of one question's difference, where the true difference is `delta`, by maximum likelihood."""
    linear = (2 * num_questions - num_gained + num_lost) * delta - num_gained - num_lost
    root = math.sqrt(max(0.0, linear**2 + 8 * num_questions * num_lost * delta * (1 - delta)))
    lost = (root - linear) / (4 * num_questions)
    return max(0.0, 2 * lost + delta * (1 - delta))


def _edge(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """Where `excess` turns positive between a difference inside the interval and one outside of it."""
    for _ in range(60):
        middle = (inside + outside) / 2
        if excess(middle) <= 0:
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2
