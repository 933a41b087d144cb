"""A measured quantity over the steps of a run, smoothed and thinned for drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeGuard

SMOOTHING_SHARE = 0.04
"""Width of the smoothing window, as a share of the curve."""


@dataclass(frozen=True)
class Curve:
    """Values at steps, in the order of the steps; those that are not finite numbers are counted and left out."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    num_missing: int = 0
    """Lines that hold the key without a finite number."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float:
        """The last value."""
        return self.values[-1]

    @property
    def lowest(self) -> tuple[int, float]:
        """Step and value of the lowest value, the first of several."""
        value, step = min(zip(self.values, self.steps, strict=True))
        return step, value

    def scaled(self, factor: float) -> Curve:
        """Each value times `factor`."""
        return Curve(self.steps, tuple(value * factor for value in self.values), self.num_missing)

    def smoothed(self) -> Curve:
        """The mean over a centred window, which is shorter at both ends; a short curve stays as it is.

        >>> Curve(tuple(range(100)), (0.0, 2.0) * 50).smoothed().values[50:52]
        (1.0, 1.0)
        """
        half = round(len(self) * SMOOTHING_SHARE / 2)
        if half == 0:
            return self
        sums = [0.0, *accumulate(self.values)]
        means = []
        for place in range(len(self)):
            reach = min(half, place, len(self) - 1 - place)
            # The outermost values of the window count half, so that values that alternate cancel out.
            inner = sums[place + reach] - sums[place - reach + 1] if reach else 0.0
            ends = (self.values[place - reach] + self.values[place + reach]) / 2
            means.append((inner + ends) / (2 * reach) if reach else self.values[place])
        return Curve(self.steps, tuple(means), self.num_missing)


def curve_of(lines: Iterable[Mapping[str, Any]], key: str) -> Curve:
    """The values of one key of metrics.jsonl.

    >>> curve_of([{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 3.0}, {"step": 2, "loss": None}], "loss")
    Curve(steps=(1,), values=(2.0,), num_missing=1)
    """
    steps, values, num_missing = [], [], 0
    for line in lines:
        if key not in line:
            continue
        value = line[key]
        if is_number(value):
            steps.append(int(line["step"]))
            values.append(float(value))
        else:
            num_missing += 1
    return Curve(tuple(steps), tuple(values), num_missing)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Point = tuple[float, float]


def thinned(points: Sequence[Point]) -> list[Point]:
    """First, lowest, highest and last point of each whole unit of x, in order: no peak is lost.

    Args:
        points: places on a drawing, x rising; a unit is a pixel.

    >>> thinned([(1.0, 5.0), (1.2, 9.0), (1.4, 1.0), (1.6, 4.0), (1.9, 5.0), (2.0, 3.0)])
    [(1.0, 5.0), (1.2, 9.0), (1.4, 1.0), (1.9, 5.0), (2.0, 3.0)]
    """
    kept: list[Point] = []
    start = 0
    for place in range(1, len(points) + 1):
        if place < len(points) and int(points[place][0]) == int(points[start][0]):
            continue
        column = range(start, place)
        lowest = min(column, key=lambda at: points[at][1])
        highest = max(column, key=lambda at: points[at][1])
        kept += [points[at] for at in sorted({start, lowest, highest, place - 1})]
        start = place
    return kept
