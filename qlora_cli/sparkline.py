"""A small curve in one line of text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

LEVELS = "▁▂▃▄▅▆▇█"


class Sparkline:
    """The curve of values that come one by one, in memory that does not grow: neighbours are averaged when it is full.

    Args:
        width: characters of the drawing.
    """

    def __init__(self, width: int = 16) -> None:
        self._width = width
        self._means: list[float] = []
        self._num_in_each = 1
        self._open: list[float] = []
        """Values of the mean that is not complete yet."""

    def add(self, value: float) -> None:
        """One value more."""
        self._open.append(value)
        if len(self._open) < self._num_in_each:
            return
        self._means.append(sum(self._open) / len(self._open))
        self._open = []
        if len(self._means) == 2 * self._width:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(one + other) / 2 for one, other in pairs]
            self._num_in_each *= 2

    def __str__(self) -> str:
        """
        >>> line = Sparkline(4)
        >>> for value in (8, 6, 4, 3, 2, 2, 1): line.add(value)
        >>> str(line)
        '█▅▂▁'
        """
        opened = [sum(self._open) / len(self._open)] if self._open else []
        return drawn_levels(_fitted([*self._means, *opened], self._width))


def drawn_levels(values: Sequence[float]) -> str:
    """One character a value, the lowest of them at the bottom and the highest at the top.

    >>> drawn_levels([1, 2, 8]), drawn_levels([3, 3]), drawn_levels([])
    ('▁▂█', '▁▁', '')
    """
    if not values:
        return ""
    low, span = min(values), (max(values) - min(values)) or 1.0
    return "".join(LEVELS[round((value - low) / span * (len(LEVELS) - 1))] for value in values)


def _fitted(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: means of neighbours, every value in one of them.

    >>> _fitted([1, 3, 5, 7, 9], 2)
    [2.0, 7.0]
    """
    if len(values) <= width:
        return list(values)
    edges = [len(values) * number // width for number in range(width + 1)]
    parts = [values[start:end] for start, end in pairwise(edges)]
    return [sum(part) / len(part) for part in parts]
