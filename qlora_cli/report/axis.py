"""From values to places on a drawing, and the round numbers between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_TICKS = 5
LOG_RATIO = 40
"""Values that are all positive and spread wider than this are drawn over their logarithm."""

ROUND = (1, 2, 5, 10)


@dataclass(frozen=True)
class Axis:
    """One direction of a drawing."""

    low: float
    high: float
    start: float
    """Place of `low` on the drawing."""

    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """
        >>> Axis(0, 10, 100, 0).place(5), Axis(1, 100, 0, 10, is_log=True).place(10)
        (50.0, 5.0)
        """
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers on the axis, at most `MAX_TICKS` and one.

        >>> Axis(1.43, 2.31, 0, 1).ticks()
        [1.6, 1.8, 2.0, 2.2]
        >>> Axis(0.5, 400, 0, 1, is_log=True).ticks()
        [1.0, 10.0, 100.0]
        """
        if self.is_log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            every = max(1, math.ceil(len(powers) / MAX_TICKS))
            return [10.0**power for power in powers[::every]]
        rough = (self.high - self.low) / MAX_TICKS
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * unit for factor in ROUND if factor * unit >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step)))
        return [round(number * step, digits) for number in range(first, last + 1)]


def value_axis(values: Sequence[float], start: float, end: float, *, from_zero: bool = False) -> Axis:
    """An axis with room for all values and a little more.

    Args:
        values: one at least.
        start: place of the lowest.
        end: place of the highest.
        from_zero: begin at 0, where nothing is below it.

    >>> value_axis([2.0, 2.0], 0, 1).low < 2.0 < value_axis([2.0, 2.0], 0, 1).high
    True
    """
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_RATIO and not from_zero:
        return Axis(low / 1.15, high * 1.15, start, end, is_log=True)
    room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    bottom = min(0.0, low) if from_zero else low - room
    if low >= 0:
        bottom = max(bottom, 0.0)
    return Axis(bottom, high + room, start, end)


def figure(value: float) -> str:
    """A number with four significant digits at most, as short as it can be.

    >>> [figure(each) for each in (0, 1.5, 1234.5, 0.0002, 123456, 2e-7, -0.12345)]
    ['0', '1.5', '1,234', '0.0002', '123k', '2e-7', '-0.1235']
    >>> figure(9.9998e-5)
    '1e-4'
    """
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M" if size < 1e9 else f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    if size >= 1e5:
        return f"{value / 1e3:.3g}k" if size < 999_500 else f"{value / 1e6:.4g}M"
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-4:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.4g}"
