"""Right and wrong answers: shares, and the difference of two shares on the same questions."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binom, norm

Z = float(norm.ppf(0.975))
"""1.96: 95% of a normal distribution lie within so many standard deviations."""


def share_interval(num_right: int, num_questions: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927).

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
    return float(exact_sign_p_values(np.array(num_gained), np.array(num_lost)))


def exact_sign_p_values(gained: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """`exact_sign_p_value` of each pair of counts."""
    p_values: np.ndarray = np.minimum(1.0, 2 * binom.cdf(np.minimum(gained, lost), gained + lost, 0.5))
    return p_values


def score_interval(num_gained: int, num_lost: int, num_questions: int) -> tuple[float, float]:
    """95% score interval of the difference of two shares on the same questions (Tango 1998).

    It holds each difference that a score test at 5% does not reject. It needs no correction where few questions
    changed, and has a width where none did.

    >>> [round(edge, 3) for edge in score_interval(num_gained=1, num_lost=7, num_questions=21)]
    [-0.517, -0.026]
    """
    low, high = score_edges(np.array(float(num_gained)), np.array(float(num_lost)), num_questions)
    return float(low), float(high)


def score_edges(gained: np.ndarray, lost: np.ndarray, num_questions: int) -> tuple[np.ndarray, np.ndarray]:
    """Both edges of `score_interval` for each pair of counts, by halving 60 times."""
    difference = (gained - lost) / num_questions

    def edge(outside: np.ndarray) -> np.ndarray:
        inside = difference
        for _ in range(60):
            middle = (inside + outside) / 2
            variance = _variance(middle, gained, lost, num_questions)
            is_inside = num_questions * (difference - middle) ** 2 <= Z**2 * variance
            inside, outside = np.where(is_inside, middle, inside), np.where(is_inside, outside, middle)
        return (inside + outside) / 2

    return edge(np.full_like(difference, -1.0)), edge(np.full_like(difference, 1.0))


def _variance(delta: np.ndarray, gained: np.ndarray, lost: np.ndarray, num_questions: int) -> np.ndarray:
    """Variance of one question's difference, where the true difference is `delta`, by maximum likelihood."""
    linear = (2 * num_questions - gained + lost) * delta - gained - lost
    root = np.sqrt(np.maximum(0.0, linear**2 + 8 * num_questions * lost * delta * (1 - delta)))
    return np.maximum(0.0, (root - linear) / (2 * num_questions) + delta * (1 - delta))
