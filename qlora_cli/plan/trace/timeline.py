"""A finished trace: every storage's life with its kind, the peak, and the memory over the step."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from qlora_cli.plan.trace.live_memory import Block, LiveMemory, MemoryKind, Phase, Stage


@dataclass(frozen=True)
class Allocation:
    """One storage: when it came and went, on the trace's clock."""

    num_bytes: int
    kind: MemoryKind
    allocated_at: int
    freed_at: int
    layer: int | None = None
    """The layer it belongs to, for what is there from the start."""


@dataclass(frozen=True)
class Moment:
    """Memory in use at one tick of the clock, in bytes."""

    clock: int
    phase: Phase
    by_kind: dict[MemoryKind, int]

    @property
    def num_bytes(self) -> int:
        """Everything on the device; paged state makes room when something needs it, so it is not counted."""
        return sum(size for kind, size in self.by_kind.items() if kind is not MemoryKind.PAGED_OPTIMIZER)


@dataclass(frozen=True)
class MemoryTrace:
    """The storages of one training step."""

    lives: tuple[Allocation, ...]
    phases: tuple[Phase, ...]
    end: int
    """The clock when the step is over."""

    @cached_property
    def peak(self) -> Moment:
        """The first moment at which most is alive."""
        total = best = 0
        best_clock = 0
        for clock, life, sign in self.events():
            if life.kind is MemoryKind.PAGED_OPTIMIZER:
                continue
            total += sign * life.num_bytes
            if total > best:
                best, best_clock = total, clock
        return self.at(best_clock)

    def at(self, clock: int) -> Moment:
        """Memory in use at `clock`."""
        alive: Counter[MemoryKind] = Counter()
        for life in self.lives:
            if life.allocated_at <= clock < life.freed_at:
                alive[life.kind] += life.num_bytes
        return Moment(clock, self.phase_at(clock), _in_order(alive))

    def phase_at(self, clock: int) -> Phase:
        """The phase that runs at `clock`; something born at a phase's start is born in it."""
        return self.phases[max(0, bisect_right(self.phases, clock - 1, key=lambda phase: phase.start) - 1)]

    def events(self) -> Iterator[tuple[int, Allocation, int]]:
        """Each birth (+1) and death (-1) in their order, with its clock."""
        ends = [(life.allocated_at, 1, life) for life in self.lives] + [
            (life.freed_at, -1, life) for life in self.lives
        ]
        for clock, sign, life in sorted(ends, key=lambda event: event[:2]):
            if clock <= self.end:
                yield clock, life, sign

    @cached_property
    def largest(self) -> dict[MemoryKind, int]:
        """The most that each kind takes at any time, each at its own."""
        total: Counter[MemoryKind] = Counter()
        most: Counter[MemoryKind] = Counter()
        for _, life, sign in self.events():
            total[life.kind] += sign * life.num_bytes
            most[life.kind] = max(most[life.kind], total[life.kind])
        return _in_order(most)

    @cached_property
    def highest(self) -> list[tuple[Phase, int]]:
        """Each phase with the most bytes that are alive while it runs."""
        total = 0
        highest = [0] * len(self.phases)
        number = 0
        for clock, life, sign in self.events():
            while number + 1 < len(self.phases) and self.phases[number + 1].start < clock:
                number += 1
                highest[number] = total
            if life.kind is not MemoryKind.PAGED_OPTIMIZER:
                total += sign * life.num_bytes
                highest[number] = max(highest[number], total)
        return list(zip(self.phases, highest, strict=True))

    def timeline(self, num_points: int = 400) -> list[Moment]:
        """The memory over the step in at most this many moments, each the fullest of its stretch of the clock.

        Raises:
            ValueError: if no point is asked for.
        """
        if num_points < 1:
            raise ValueError(f"a timeline of {num_points} points")
        stretch = max(1, -(-(self.end + 1) // num_points))
        alive: Counter[MemoryKind] = Counter()
        moments: list[Moment] = []
        for clock, life, sign in self.events():
            alive[life.kind] += sign * life.num_bytes
            moment = Moment(clock, self.phases[0], dict(alive))
            if moments and moments[-1].clock // stretch == clock // stretch:
                if moment.num_bytes > moments[-1].num_bytes:
                    moments[-1] = moment
            else:
                moments.append(moment)
        return [
            Moment(
                each.clock,
                self.phase_at(each.clock),
                {kind: each.by_kind[kind] for kind in MemoryKind if each.by_kind.get(kind)},
            )
            for each in moments
        ]


def _in_order(sizes: Mapping[MemoryKind, int]) -> dict[MemoryKind, int]:
    return {kind: sizes[kind] for kind in MemoryKind if sizes.get(kind)}


def finished_trace(memory: LiveMemory) -> MemoryTrace:
    """The trace of a step that has been counted.

    What forward leaves to backward is known now: it was born in a layer's forward or recomputation and outlived it.
    """
    end = memory.clock + 1
    keeps = _ends_of_keeping(memory)
    lives = []
    for block in memory.blocks:
        died = end + 1 if block.freed_at is None else block.freed_at
        kind = block.kind or _kind(block, memory.phases[block.phase], died, keeps)
        lives.append(Allocation(block.num_bytes, kind, block.allocated_at, died, block.layer))
    return MemoryTrace(tuple(lives), tuple(memory.phases), end)


def _kind(block: Block, phase: Phase, freed_at: int, keeps: dict[int, int]) -> MemoryKind:
    if phase.stage is Stage.LOSS or (phase.stage is Stage.BACKWARD and phase.layer is None):
        return MemoryKind.LOSS
    if phase.stage in (Stage.FORWARD, Stage.RECOMPUTE) and freed_at > keeps[block.phase]:
        return MemoryKind.ACTIVATIONS
    return MemoryKind.TEMPORARY


def _ends_of_keeping(memory: LiveMemory) -> dict[int, int]:
    """For each forward or recomputing phase the clock from which on what it made is kept for backward."""
    starts = [phase.start for phase in memory.phases] + [memory.clock]
    loss_start = next((phase.start for phase in memory.phases if phase.stage is Stage.LOSS), memory.clock)
    return {
        number: starts[number + 1] if phase.stage is Stage.RECOMPUTE else loss_start
        for number, phase in enumerate(memory.phases)
        if phase.stage in (Stage.FORWARD, Stage.RECOMPUTE)
    }
