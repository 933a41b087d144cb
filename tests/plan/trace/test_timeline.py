"""Moments, peaks and thinned timelines of a trace that can be counted by hand."""

from __future__ import annotations

import pytest

from qlora_cli.plan.trace.live_memory import MemoryKind, Phase, Stage
from qlora_cli.plan.trace.timeline import Allocation, MemoryTrace

TRACE = MemoryTrace(
    lives=(
        Allocation(100, MemoryKind.BASE_QUANTIZED, 0, 99),
        Allocation(50, MemoryKind.PAGED_OPTIMIZER, 0, 99),
        Allocation(10, MemoryKind.ACTIVATIONS, 1, 8),
        Allocation(20, MemoryKind.ACTIVATIONS, 2, 7),
        Allocation(40, MemoryKind.TEMPORARY, 5, 6),
    ),
    phases=(Phase(Stage.SETUP, None, 0), Phase(Stage.FORWARD, 0, 0), Phase(Stage.BACKWARD, 0, 4)),
    end=9,
)


def test_the_peak_is_the_fullest_moment_and_knows_its_phase():
    assert (TRACE.peak.clock, TRACE.peak.num_bytes, str(TRACE.peak.phase)) == (5, 170, "backward, layer 0")
    assert TRACE.peak.by_kind[MemoryKind.PAGED_OPTIMIZER] == 50


def test_each_phase_has_its_own_height():
    assert [height for _, height in TRACE.highest] == [100, 130, 170]


def test_each_kind_has_its_own_height():
    assert TRACE.largest[MemoryKind.ACTIVATIONS] == 30
    assert TRACE.largest[MemoryKind.TEMPORARY] == 40


def test_what_dies_at_a_tick_is_gone_at_it():
    assert TRACE.at(7).by_kind[MemoryKind.ACTIVATIONS] == 10
    assert MemoryKind.ACTIVATIONS not in TRACE.at(8).by_kind


def test_a_thinned_timeline_keeps_the_peak():
    thinned = TRACE.timeline(3)
    assert len(thinned) <= 3
    assert max(moment.num_bytes for moment in thinned) == TRACE.peak.num_bytes
    assert [moment.clock for moment in thinned] == sorted(moment.clock for moment in thinned)


def test_a_timeline_needs_a_point():
    with pytest.raises(ValueError, match="0 points"):
        TRACE.timeline(0)
