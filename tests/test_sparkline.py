"""The small curve keeps its shape and its width, however many values come."""

from __future__ import annotations

import pytest

from qlora_cli.sparkline import LEVELS, Sparkline


@pytest.mark.parametrize("num", [1, 3, 16, 17, 33, 1000, 100_000])
def test_a_falling_curve_falls_and_fits(num):
    line = Sparkline(16)
    for number in range(num):
        line.add(num - number)
    drawn = str(line)
    heights = [LEVELS.index(character) for character in drawn]
    assert len(drawn) <= 16
    assert heights == sorted(heights, reverse=True)
    assert num == 1 or (drawn[0], drawn[-1]) == ("█", "▁")
