"""A verdict in one line of plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qlora_cli.verdict.sensitivity import Sensitivity

LEVEL = 0.05
"""Share of false alarms that is put up with, over all measures that are asked together."""


@dataclass(frozen=True)
class Figures:
    """Numbers of a comparison that its sentence names."""

    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    num_questions: int
    num_measures: int
    """Measures that were asked together."""

    num_signs: tuple[int, int] | None
    """Questions gained and lost, where each is only gained, lost or the same."""


def sentence(outcome: str, figures: Figures, sensitivity: Sensitivity) -> str:
    """The verdict in words, with what the questions could have shown where they showed nothing."""
    if figures.low == figures.high == 0:
        return f"no evidence of a difference: the same in every row ({figures.num_questions:,} rows)"
    found = f"{_difference(figures)} (95% interval {_interval(figures)}; p {_p(figures.p_adjusted)}"
    if figures.num_measures > 1:
        found += f" after Holm over {figures.num_measures} measures"
    found += f"; {figures.num_questions:,} questions)"
    if outcome != "no evidence":
        return f"{outcome}: {found}"
    return f"no evidence of a difference: {found}; {_why(figures)}{_sensitivity(figures, sensitivity)}"


def _why(figures: Figures) -> str:
    """Why an interval that leaves 0 out is no evidence; empty where 0 is in it."""
    if figures.low <= 0 <= figures.high:
        return ""
    if figures.p_value >= LEVEL:
        return "the interval just leaves 0 out, but the exact test is not sure; "
    return f"alone it would count, but one of {figures.num_measures} measures shows as much by chance too often; "


def _difference(figures: Figures) -> str:
    if figures.num_signs is None:
        return f"{figures.difference:+.4g}"
    gained, lost = figures.num_signs
    return f"{gained} gained, {lost} lost, {100 * figures.difference:+.1f} points"


def _interval(figures: Figures) -> str:
    if math.isinf(figures.low) or math.isinf(figures.high):
        return "unbounded"
    if figures.num_signs is None:
        return f"{figures.low:+.4g} to {figures.high:+.4g}"
    return f"{100 * figures.low:+.1f} to {100 * figures.high:+.1f}"


def _sensitivity(figures: Figures, sensitivity: Sensitivity) -> str:
    more = f"{sensitivity.rows_for_half:,} more would show"
    if math.isinf(sensitivity.smallest):
        return f"this many cannot show any; {more} 50 points" if figures.num_signs else "this many cannot show any"
    if figures.num_signs is None:
        return f"this many show {sensitivity.smallest:.3g} or more, {more} half of it"
    return f"this many show {100 * sensitivity.smallest:.1f} points or more, {more} half of it"


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.0005 else "< 0.001"
