"""Two models on the same questions: is the difference real, and how small a one could have been seen?

Every figure pairs the two models question by question, because most of the spread is between questions and not between
models (Miller 2024, arXiv:2411.00640, section 4.2); comparing two means with their own errors would throw that away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qlora_cli.errors import NumericError
from qlora_cli.verdict.proportions import exact_sign_p_value, score_interval, share_interval
from qlora_cli.verdict.ratios import compare_rows, ratio_interval
from qlora_cli.verdict.sensitivity import Sensitivity, of_rows, of_signs
from qlora_cli.verdict.wording import LEVEL, Figures, sentence

Outcome = Literal["better", "worse", "no evidence"]


@dataclass(frozen=True)
class Paired:
    """One measure of two models on the same Q questions, or rows."""

    before: Sequence[float]
    """(Q,) of each question: 0 or 1 for wrong and right, a score from 0 to 1, or a loss in nats summed over the row."""

    after: Sequence[float]
    """(Q,) of the other model."""

    weights: Sequence[float] | None = None
    """(Q,) tokens or bytes of each row, where the measure is sum(values) / sum(weights)."""

    higher_is_better: bool = True


@dataclass(frozen=True)
class Verdict:
    """What two models' values on the same questions allow to be said."""

    difference: float
    """after - before."""

    low: float
    high: float
    """95% interval of the difference; infinite where one row cannot bound it."""

    p_value: float
    """Two-sided, of this measure alone."""

    p_adjusted: float
    """The same after Holm's correction for all measures that were asked together; the outcome goes by this one."""

    outcome: Outcome
    num_questions: int
    """Questions, or rows, that have a weight."""

    smallest_detectable: float
    """Smallest true difference that these questions would show with a power of 80%; infinite where none would be."""

    rows_for_half: int
    """Additional questions with which half of that would be shown."""

    sentence: str
    """All of this in one line."""


@dataclass(frozen=True)
class _Measured:
    difference: float
    low: float
    high: float
    p_value: float
    num_questions: int
    sensitivity: Sensitivity
    num_signs: tuple[int, int] | None
    """Questions gained and lost, where each is only gained, lost or the same."""


def judge_pairs(pairs: Mapping[str, Paired]) -> dict[str, Verdict]:
    """A verdict on each measure; p values are adjusted for all of them (Holm 1979).

    Args:
        pairs: measures by name, all that are asked together.

    Raises:
        NumericError: a value is NaN or infinite, or a weight negative.
        ValueError: the two models have different numbers of values, or none.

    >>> before, after = [0] * 40 + [1] * 60, [1] * 30 + [0] * 10 + [1] * 60
    >>> judge_pairs({"exact_match": Paired(before, after)})["exact_match"].outcome
    'better'
    """
    measured = {name: _measure(name, pair, LEVEL / len(pairs)) for name, pair in pairs.items()}
    adjusted = holm([one.p_value for one in measured.values()])
    return {
        name: _verdict(one, p_adjusted, pairs[name].higher_is_better, len(pairs))
        for (name, one), p_adjusted in zip(measured.items(), adjusted, strict=True)
    }


def interval(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, float]:
    """95% interval of one model's figure: the mean of `values`, or sum(values) / sum(weights).

    Raises:
        NumericError: a value is NaN or infinite, or a weight negative.
        ValueError: there are no values.

    >>> low, high = interval([1] * 60 + [0] * 40)
    >>> round(low, 3), round(high, 3)
    (0.502, 0.691)
    """
    numbers = _checked("values", values)
    kept = _weights_of("values", weights, numbers)
    if weights is None and set(np.unique(numbers)) <= {0.0, 1.0}:
        return share_interval(int(numbers.sum()), len(numbers))
    low, high = ratio_interval(numbers[kept > 0], kept[kept > 0])
    is_score = weights is None and numbers.min() >= 0 and numbers.max() <= 1
    return (max(low, 0.0), min(high, 1.0)) if is_score else (low, high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values after Holm's correction: no more than 5% of families of measures raise any false alarm.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _measure(name: str, pair: Paired, level: float) -> _Measured:
    before, after = _checked(name, pair.before), _checked(name, pair.after)
    if len(before) != len(after):
        raise ValueError(f"{name}: {len(before)} values before and {len(after)} after")
    weights = _weights_of(name, pair.weights, np.abs(before) + np.abs(after))
    differences = (after - before)[weights > 0]
    if pair.weights is None and set(np.unique([before, after, after - before])) <= {-1.0, 0.0, 1.0}:
        return _measure_signs(differences, level)
    is_score = pair.weights is None and min(before.min(), after.min()) >= 0 and max(before.max(), after.max()) <= 1
    found = compare_rows(differences, weights[weights > 0], largest=1.0 if is_score else None)
    low, high = (max(found.low, -1.0), min(found.high, 1.0)) if is_score else (found.low, found.high)
    sensitivity = of_rows(found.standard_error, found.reach, len(differences), level)
    return _Measured(found.difference, low, high, found.p_value, len(differences), sensitivity, None)


def _measure_signs(differences: np.ndarray, level: float) -> _Measured:
    gained, lost, total = int((differences > 0).sum()), int((differences < 0).sum()), len(differences)
    low, high = score_interval(gained, lost, total)
    p_value = exact_sign_p_value(gained, lost)
    sensitivity = of_signs(gained + lost, total, level)
    return _Measured((gained - lost) / total, low, high, p_value, total, sensitivity, (gained, lost))


def _verdict(one: _Measured, p_adjusted: float, higher_is_better: bool, num_measures: int) -> Verdict:
    outcome: Outcome = "no evidence"
    if p_adjusted < LEVEL and (one.low > 0 or one.high < 0):
        outcome = "better" if (one.difference > 0) == higher_is_better else "worse"
    figures = Figures(
        one.difference, one.low, one.high, one.p_value, p_adjusted, one.num_questions, num_measures, one.num_signs
    )
    return Verdict(
        difference=one.difference,
        low=one.low,
        high=one.high,
        p_value=one.p_value,
        p_adjusted=p_adjusted,
        outcome=outcome,
        num_questions=one.num_questions,
        smallest_detectable=one.sensitivity.smallest,
        rows_for_half=one.sensitivity.rows_for_half,
        sentence=sentence(outcome, figures, one.sensitivity),
    )


def _checked(name: str, values: Sequence[float]) -> np.ndarray:
    """`values` as an array, all of them finite."""
    if len(values) == 0:
        raise ValueError(f"{name}: there are no values")
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        index = int(np.argmin(np.isfinite(numbers)))
        raise NumericError(
            f"value {index + 1} of {len(numbers)} is {numbers[index]}, and nothing can be compared with it",
            place=name,
            hint="look at that row: a model whose numbers overflow gives such a loss",
        )
    return numbers


def _weights_of(name: str, weights: Sequence[float] | None, values: np.ndarray) -> np.ndarray:
    """`weights`, or ones. A row of weight 0 is left out, and so it must have no value."""
    if weights is None:
        return np.ones(len(values))
    numbers = _checked(name, weights)
    if len(numbers) != len(values):
        raise ValueError(f"{name}: {len(numbers)} weights of {len(values)} values")
    if numbers.min() < 0:
        raise NumericError(f"a row has the weight {numbers.min()}", place=name)
    if (values[numbers == 0] != 0).any():
        raise ValueError(f"{name}: a row without weight has a value")
    if not math.fsum(numbers):
        raise ValueError(f"{name}: no row has a weight")
    return numbers
