"""One piece of advice: what was seen, the figure that shows it, and the key to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any


@dataclass(frozen=True)
class Change:
    """A key of the recipe and the value to try."""

    key: str
    value: Any

    def __str__(self) -> str:
        """
        >>> str(Change("training.learning_rate", 2e-4)), str(Change("training.load_best_model_at_end", True))
        ('training.learning_rate: 2.0e-4', 'training.load_best_model_at_end: true')
        """
        return f"{self.key}: {_as_yaml(self.value)}"


@dataclass(frozen=True)
class Advice:
    """Something to do about a run; never without the figures that led to it."""

    title: str
    """What was seen, in a few words."""

    figures: str
    """The evidence: a sentence with its numbers."""

    remedy: str
    """What the changes do."""

    changes: Sequence[Change] = ()


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and 0 < value < 0.001:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Window:
    """Mean of neighbouring values, and its standard error."""

    mean: float
    error: float


def window(values: Sequence[float]) -> Window:
    """Mean and standard error, from how much the values scatter; neighbours are taken for independent.

    >>> window([1.0, 3.0])
    Window(mean=2.0, error=1.0)
    """
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Window(fmean(values), error)


def noise_between(one: Window, other: Window) -> float:
    """Two standard errors of the difference of two windows: less than that is no difference."""
    return 2 * math.hypot(one.error, other.error)


def rounded(value: float) -> float:
    """The value with two significant digits.

    >>> rounded(0.000666), rounded(183)
    (0.00067, 180.0)
    """
    return float(f"{value:.2g}")
