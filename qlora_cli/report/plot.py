"""Curves as a drawing: inline SVG that needs no script; pointing at it reads the values there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from qlora_cli.report.axis import Axis, figure, value_axis
from qlora_cli.report.curve import Curve, Point, thinned
from qlora_cli.web_page import text_as_html

WIDTH, HEIGHT = 360, 176
"""Units of a drawing; letters are 11 of them high."""

LEFT, RIGHT, TOP, BOTTOM = 46, 8, 20, 22
MAX_BANDS = 72
"""Places at which the values can be read."""

MAX_DOTS = 40
"""A curve of more points is drawn as a line alone."""

ROW = 13
"""Height of a line of text."""


Look = Literal["line", "faint", "dotted"]


@dataclass(frozen=True)
class Series:
    """One curve of a drawing."""

    name: str
    curve: Curve
    colour: int = 0
    look: Look = "line"
    """Dotted: each value is a dot on the line."""

    is_read: bool = True
    """Whether its values are shown where the drawing is pointed at."""


@dataclass(frozen=True)
class Level:
    """A value to compare with: a line across the drawing."""

    name: str
    value: float


@dataclass(frozen=True)
class Plot:
    """A drawing of one quantity over the steps."""

    title: str
    unit: str
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    marked: tuple[int, float, str] | None = None
    """Step and value of a point to mark, and what it is."""

    from_zero: bool = False
    format: Callable[[float], str] = figure
    notes: Sequence[str] = ()
    """Plain text below it."""

    names: Sequence[str] = field(default=())
    """Legend: names of the colours, in order; none where there is one curve."""


def draw(plot: Plot) -> str:
    """The drawing with its caption and notes; a sentence where there is nothing to draw."""
    drawn = [series for series in plot.series if len(series.curve)]
    caption = f"<figcaption><b>{text_as_html(plot.title)}</b> <span>{text_as_html(plot.unit)}</span></figcaption>"
    notes = "".join(f"<p>{text_as_html(note)}</p>" for note in plot.notes)
    if not drawn:
        return f'<figure class="plot">{caption}<p class="none">not recorded</p>{notes}</figure>'
    x, y = _axes(plot, drawn)
    legend = "".join(
        f'<span class="k{number % 6}"><i></i>{text_as_html(name)}</span>' for number, name in enumerate(plot.names)
    )
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text_as_html(_in_words(plot, drawn))}">',
        *_grid(x, y, plot.format),
        *(part for level in plot.levels for part in _level(level, y, plot.format)),
        *(part for series in drawn for part in _line(series, x, y)),
        *_marked(plot, x, y),
        *_bands(plot, [series for series in drawn if series.is_read], x, y),
        "</svg>",
    ]
    shown_legend = f'<p class="legend">{legend}</p>' if legend else ""
    return f'<figure class="plot">{caption}{"".join(parts)}{shown_legend}{notes}</figure>'


def _axes(plot: Plot, drawn: Sequence[Series]) -> tuple[Axis, Axis]:
    steps = [step for series in drawn for step in (series.curve.steps[0], series.curve.steps[-1])]
    first, last = min(steps), max(steps)
    x = Axis(first, max(last, first + 1), LEFT, WIDTH - RIGHT)
    values = [value for series in drawn for value in series.curve.values]
    values += [level.value for level in plot.levels]
    # The words at a marked point stand below it.
    floor = HEIGHT - BOTTOM - (ROW if plot.marked else 0)
    y = value_axis(values, floor, TOP, from_zero=plot.from_zero)
    return x, y


def _in_words(plot: Plot, drawn: Sequence[Series]) -> str:
    """What the drawing shows, for those who hear it."""
    told = [
        f"{series.name} from {plot.format(series.curve.values[0])} at step {series.curve.steps[0]:,} "
        f"to {plot.format(series.curve.last)} at step {series.curve.steps[-1]:,}"
        for series in drawn
        if series.is_read
    ]
    return f"{plot.title}: {'; '.join(told)}"


def _grid(x: Axis, y: Axis, told: Callable[[float], str]) -> Iterator[str]:
    for value in y.ticks():
        place = y.place(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{text_as_html(told(value))}</text>'
    steps = [step for step in x.ticks() if step == int(step)]
    for step in steps:
        place = x.place(step)
        anchor = "end" if place > WIDTH - 24 else "middle"
        yield f'<text x="{place:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{figure(step)}</text>'
    yield f'<text x="{LEFT - 6}" y="{HEIGHT - 6}" text-anchor="end">step</text>'


def _level(level: Level, y: Axis, told: Callable[[float], str]) -> Iterator[str]:
    place = y.place(level.value)
    yield f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
    text = text_as_html(f"{level.name} {told(level.value)}")
    below = place + ROW if place < TOP + ROW else place - 4
    yield f'<text class="level-text" x="{LEFT + 4}" y="{below:.1f}">{text}</text>'


def _line(series: Series, x: Axis, y: Axis) -> Iterator[str]:
    curve = series.curve
    places = [(x.place(step), y.place(value)) for step, value in zip(curve.steps, curve.values, strict=True)]
    points = thinned(places)
    if len(points) == 1:
        yield _dot(points[0], series.colour)
        return
    path = "L".join(f"{left:.1f},{top:.1f}" for left, top in points)
    name = "faint " if series.look == "faint" else ""
    yield f'<path class="curve {name}c{series.colour % 6}" d="M{path}"/>'
    if series.look == "dotted" and len(points) <= MAX_DOTS:
        yield from (_dot(point, series.colour) for point in points)


def _dot(point: Point, colour: int) -> str:
    return f'<circle class="dot f{colour % 6}" cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="2.5"/>'


def _marked(plot: Plot, x: Axis, y: Axis) -> Iterator[str]:
    if plot.marked is None:
        return
    step, value, name = plot.marked
    left, top = x.place(step), y.place(value)
    yield f'<circle class="ring" cx="{left:.1f}" cy="{top:.1f}" r="5"/>'
    anchor = "end" if left > WIDTH * 0.7 else "start" if left < WIDTH * 0.3 else "middle"
    yield (
        f'<text class="ring-text" x="{left:.1f}" y="{top + 18:.1f}" text-anchor="{anchor}">{text_as_html(name)}</text>'
    )


def _bands(plot: Plot, read: Sequence[Series], x: Axis, y: Axis) -> Iterator[str]:
    """Strips of the drawing, each with the values at its middle, seen where the strip is pointed at."""
    steps = sorted({step for series in read for step in series.curve.steps})
    every = max(1, len(steps) / MAX_BANDS)
    chosen = [steps[int(number * every)] for number in range(int(len(steps) / every))]
    if chosen[-1] != steps[-1]:
        chosen[-1] = steps[-1]
    places = [x.place(step) for step in chosen]
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(places)), WIDTH - RIGHT]
    for number, step in enumerate(chosen):
        left, width = edges[number], edges[number + 1] - edges[number]
        is_last = ' class="last"' if number == len(chosen) - 1 else ""
        yield (
            f'<g{is_last}><rect x="{left:.1f}" y="0" width="{width:.1f}" height="{HEIGHT - BOTTOM}"/>'
            f'<path d="M{places[number]:.1f},{TOP}V{HEIGHT - BOTTOM}"/>{_reading(plot, read, step, x, y)}</g>'
        )


def _reading(plot: Plot, read: Sequence[Series], step: int, x: Axis, y: Axis) -> str:
    """Dots on the curves at a step and the values in words."""
    dots, texts = [], []
    for series in read:
        place = _nearest(series.curve.steps, step)
        if place is None:
            continue
        value = series.curve.values[place]
        dots.append(_dot((x.place(series.curve.steps[place]), y.place(value)), series.colour))
        name = f"{series.name} " if len(read) > 1 else ""
        texts.append(text_as_html(f"{name}{plot.format(value)}"))
    lines = [f"step {step:,} · {texts[0]}", *texts[1:]] if texts else [f"step {step:,}"]
    told = "".join(
        f'<text x="{WIDTH - RIGHT}" y="{12 + number * ROW}" text-anchor="end">{line}</text>'
        for number, line in enumerate(lines)
    )
    return "".join(dots) + told


def _nearest(steps: Sequence[int], step: int) -> int | None:
    """Index of the step that is nearest; None where `step` lies before the first or after the last.

    >>> _nearest((10, 20, 30), 24), _nearest((10, 20, 30), 26), _nearest((10, 20, 30), 31)
    (1, 2, None)
    """
    if not steps[0] <= step <= steps[-1]:
        return None
    place = bisect_left(steps, step)
    return place - 1 if place and step - steps[place - 1] < steps[place] - step else place
