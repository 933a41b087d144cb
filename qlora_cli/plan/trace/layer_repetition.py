"""A long model's trace from a short one's: layers that are alike leave alike events.

A step goes through its layers upward in the forward pass and downward in the backward pass. Between the two traces of a
model with m and with n layers there is no difference but that a middle layer's events come n - m times more often, each
time later on the clock by the events of one layer. `extrapolate_layers` inserts them, so the result is a trace like any
other, with its peak and its timeline, and equal to the one that all n layers would have left;
`plan/trace/trace_step.py` proves that on two short models before it believes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qlora_cli.plan.trace.live_memory import MemoryKind, Phase, Stage
from qlora_cli.plan.trace.timeline import Allocation, MemoryTrace


@dataclass(frozen=True)
class Pattern:
    """Repetition in a stack of layers."""

    lead: int
    """Layers before the repetition begins."""

    period: int
    """Layers after which the next ones are the same again."""


def find_pattern(signatures: Sequence[object]) -> Pattern:
    """The shortest repetition, and the earliest start of it, that holds to the end.

    >>> find_pattern(["dense", "expert", "expert", "expert"])
    Pattern(lead=1, period=1)
    >>> find_pattern(["near", "far", "near", "far", "near"])
    Pattern(lead=0, period=2)
    """
    num_layers = len(signatures)
    best = Pattern(0, num_layers)
    for period in range(1, num_layers):
        lead = num_layers - period
        while lead > 0 and signatures[lead - 1] == signatures[lead - 1 + period]:
            lead -= 1
        if lead + 2 * period <= num_layers and lead + period < best.lead + best.period:
            best = Pattern(lead, period)
    return best


MARGIN = 2
"""Periods before the repeated one, and after it: the one next to it must itself have ordinary neighbours."""


def short_length(pattern: Pattern, num_layers: int) -> int:
    """Layers of the shortest model that ends as the long one does and has a period with a margin on both sides.

    >>> short_length(Pattern(lead=0, period=1), 32)
    5
    >>> short_length(Pattern(lead=0, period=6), 62)
    32
    """
    return pattern.lead + (2 * MARGIN + 1) * pattern.period + (num_layers - pattern.lead) % pattern.period


@dataclass(frozen=True)
class _Segment:
    """A stretch of the step: a layer's forward or backward, or what comes before, between or after them."""

    name: str
    layer: int | None
    start: int
    stop: int
    phases: tuple[Phase, ...]


def extrapolate_layers(trace: MemoryTrace, pattern: Pattern, num_layers: int) -> MemoryTrace:
    """The trace of the same step with `num_layers` layers.

    Raises:
        ValueError: if the trace does not go through its layers up and down once, or something that a layer made dies in
            one that is not there.
    """
    segments = _segments(trace)
    num_short = sum(1 for segment in segments if segment.name == "forward")
    stretch = _RepeatedRun(num_short, num_layers, pattern)
    source = {(segment.name, segment.layer): segment for segment in segments}
    _check_order(segments, num_short)
    order = _order(num_layers)
    starts: dict[tuple[str, int | None], int] = {}
    clock = 0
    for name, layer in order:
        starts[name, layer] = clock
        segment = source[name, stretch.source(layer)]
        clock += segment.stop - segment.start
    lives = _steady_lives(trace, stretch, clock)
    births = _by_birth(trace, segments)
    scale = _optimizer_scale(trace, lives)
    for name, layer in order:
        segment = source[name, stretch.source(layer)]
        for life, place in births[segment.name, segment.layer]:
            born = starts[name, layer] + life.allocated_at - segment.start
            died = clock + 1
            if place is not None:
                target = (place.name, stretch.target(place.layer, segment.layer, layer))
                if target not in starts:
                    raise ValueError(f"something of layer {segment.layer} dies in layer {place.layer}")
                died = starts[target] + life.freed_at - place.start
            grows = name == "end" and life.kind is MemoryKind.KERNEL_WORKSPACE
            size = round(life.num_bytes * scale) if grows else life.num_bytes
            lives.append(Allocation(size, life.kind, born, died))
    phases = [
        Phase(phase.stage, None if phase.layer is None else layer, starts[name, layer] + phase.start - segment.start)
        for name, layer in order
        for segment in (source[name, stretch.source(layer)],)
        for phase in segment.phases
    ]
    return MemoryTrace(tuple(lives), tuple(phases), clock)


@dataclass(frozen=True)
class _RepeatedRun:
    """Assignment of the long model's layers to those of the short one that stand for them."""

    num_short: int
    num_long: int
    pattern: Pattern

    @property
    def _first(self) -> int:
        """First layer of the middle period, the one that is repeated."""
        return self.pattern.lead + MARGIN * self.pattern.period

    def source(self, layer: int | None) -> int | None:
        """The short model's layer that is like this one of the long model."""
        if layer is None or layer < self._first:
            return layer
        num_after = self.num_short - self._first - self.pattern.period
        if layer >= self.num_long - num_after:
            return layer - (self.num_long - self.num_short)
        return self._first + (layer - self._first) % self.pattern.period

    def target(self, place: int | None, source: int | None, layer: int | None) -> int | None:
        """The long model's layer where something dies that was made in its `layer`.

        Its short model's counterpart was made in `source` and died in `place`: as many layers further on, or, where it
        was made by no layer, as far from the nearer end.
        """
        if place is None:
            return None
        if source is not None and layer is not None:
            return layer + place - source
        return place if place < self._first else place + self.num_long - self.num_short


def _segments(trace: MemoryTrace) -> list[_Segment]:
    """The step cut up; between two layers of the forward pass nothing is a stretch of its own."""
    groups: list[tuple[str, int | None, list[Phase]]] = []
    for number, phase in enumerate(trace.phases):
        following = trace.phases[number + 1] if number + 1 < len(trace.phases) else None
        name, layer = _name(phase), phase.layer
        if name == "between" and groups[-1][0] == "head":
            name = "head"
        if name == "between" and following is not None and following.stage is Stage.FORWARD:
            name, layer = groups[-1][0], groups[-1][1]
        if groups and groups[-1][:2] == (name, layer):
            groups[-1][2].append(phase)
        else:
            groups.append((name, layer, [phase]))
    stops = [group[2][0].start for group in groups[1:]] + [trace.end]
    return [
        _Segment(name, layer, phases[0].start, stop, tuple(phases))
        for (name, layer, phases), stop in zip(groups, stops, strict=True)
    ]


def _name(phase: Phase) -> str:
    match phase.stage:
        case Stage.SETUP:
            return "head"
        case Stage.OPTIMIZER:
            return "end"
        case Stage.FORWARD if phase.layer is not None:
            return "forward"
        case Stage.BACKWARD | Stage.RECOMPUTE if phase.layer is not None:
            return "backward"
        case _:
            return "between"


def _order(num_layers: int) -> list[tuple[str, int | None]]:
    up = [("forward", layer) for layer in range(num_layers)]
    down = [("backward", layer) for layer in reversed(range(num_layers))]
    return [("head", None), *up, ("between", None), *down, ("end", None)]


def _check_order(segments: Sequence[_Segment], num_layers: int) -> None:
    if [(segment.name, segment.layer) for segment in segments] != _order(num_layers):
        raise ValueError("the step does not go through its layers up and down once")


def _by_birth(
    trace: MemoryTrace, segments: Sequence[_Segment]
) -> dict[tuple[str, int | None], list[tuple[Allocation, _Segment | None]]]:
    """Allocations of each segment, with the segment in which they are freed; None for those that outlive the step."""
    found: dict[tuple[str, int | None], list[tuple[Allocation, _Segment | None]]] = defaultdict(list)
    for life in trace.lives:
        if life.allocated_at:
            born_in = _at(segments, life.allocated_at)
            found[born_in.name, born_in.layer].append(
                (life, _at(segments, life.freed_at) if life.freed_at <= trace.end else None)
            )
    return found


def _at(segments: Sequence[_Segment], clock: int) -> _Segment:
    low, high = 0, len(segments) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if segments[middle].start < clock else (low, middle - 1)
    return segments[low]


def _steady_lives(trace: MemoryTrace, stretch: _RepeatedRun, end: int) -> list[Allocation]:
    """Allocations that exist from the start: of no layer first, then layer by layer."""
    by_layer: dict[int | None, list[Allocation]] = defaultdict(list)
    for life in trace.lives:
        if not life.allocated_at:
            by_layer[life.layer].append(replace(life, freed_at=end + 1))
    lives = by_layer[None]
    for layer in range(stretch.num_long):
        lives += [replace(life, layer=layer) for life in by_layer[stretch.source(layer)]]
    return lives


def _optimizer_scale(trace: MemoryTrace, lives: Sequence[Allocation]) -> float:
    """Ratio of the long model's adapter to the short one's; the optimizer's workspace grows with it."""
    short = sum(life.num_bytes for life in trace.lives if life.kind is MemoryKind.ADAPTER)
    return sum(life.num_bytes for life in lives if life.kind is MemoryKind.ADAPTER) / short
