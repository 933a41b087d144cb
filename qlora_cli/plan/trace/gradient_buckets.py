"""Memory that training in several processes adds to a step: the buffers in which gradients are summed.

After the last backward pass `train/processes/collectives.py` joins gradients into flat float32 buffers, one bucket of
parameters after the other, and sums each over all processes. A buffer lives until the next one is there. Gradients in
16 bit are copied into float32 first, all those of a bucket together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from qlora_cli.plan.trace.live_memory import MemoryKind, Stage
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace.timeline import Allocation, MemoryTrace

MAX_ELEMENTS = 2**24
"""Gradients that `train/processes/collectives.py` sums in one operation, in elements: 64 MiB in float32."""

TICKS = 4
"""Of the clock for each bucket: its pieces come, its buffer comes, the pieces go, the buffer before it goes."""


def with_gradient_sums(trace: MemoryTrace, request: PlanRequest) -> MemoryTrace:
    """The trace of a step in which this process sums its gradients with those of others.

    Raises:
        ValueError: if the step has no optimizer's phase.
    """
    is_float32 = request.recipe.lora.autocast_adapter_dtype or request.dtype is torch.float32
    width = 4 if is_float32 else 2
    sizes = [life.num_bytes // width for life in trace.lives if life.kind is MemoryKind.ADAPTER]
    start = next((phase.start for phase in trace.phases if phase.stage is Stage.OPTIMIZER), None)
    if start is None:
        raise ValueError("a step without an optimizer's phase")
    groups = buckets(sizes)
    num_ticks = TICKS * len(groups) + 1
    sums = list(_sums(groups, start, start + num_ticks, is_copied=width < 4))
    lives = [_later(life, start, num_ticks) for life in trace.lives]
    phases = [replace(phase, start=phase.start + num_ticks) if phase.start > start else phase for phase in trace.phases]
    return MemoryTrace((*lives, *sums), tuple(phases), trace.end + num_ticks)


def _later(life: Allocation, start: int, num_ticks: int) -> Allocation:
    born = life.allocated_at + num_ticks if life.allocated_at > start else life.allocated_at
    died = life.freed_at + num_ticks if life.freed_at > start else life.freed_at
    return replace(life, allocated_at=born, freed_at=died)


def _sums(groups: Sequence[Sequence[int]], start: int, end: int, *, is_copied: bool) -> Iterator[Allocation]:
    """Allocations for each bucket: its pieces, then the buffer; only then is the one before freed."""
    for number, bucket in enumerate(groups):
        clock = start + TICKS * number
        # One element for each parameter says whether any process has a gradient for it.
        pieces = len(bucket) + (sum(bucket) if is_copied else 0)
        yield Allocation(4 * pieces, MemoryKind.GRADIENT_SUMS, clock + 1, clock + 3)
        yield Allocation(
            4 * (sum(bucket) + len(bucket)), MemoryKind.GRADIENT_SUMS, clock + 2, min(clock + 2 * TICKS, end)
        )


def buckets(sizes: Sequence[int]) -> list[list[int]]:
    """Numbers of elements in groups of at most `MAX_ELEMENTS`, the largest alone.

    >>> buckets([2**23, 2**23, 1, 2**25])
    [[8388608, 8388608], [1], [33554432]]
    """
    groups: list[list[int]] = []
    total = MAX_ELEMENTS
    for size in sizes:
        total += size
        if total > MAX_ELEMENTS or not groups:
            groups.append([])
            total = size
        groups[-1].append(size)
    return groups
