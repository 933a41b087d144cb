"""Moments, peaks and thinned timelines of a trace that can be counted by hand."""

from __future__ import annotations

import pytest

from qlora_cli.plan.trace.live_memory import Kind, Phase, Stage
from qlora_cli.plan.trace.timeline import Life, Trace

TRACE = Trace(
    lives=(
        Life(100, Kind.BASE_QUANTIZED, 0, 99),
        Life(50, Kind.PAGED_OPTIMIZER, 0, 99),
        Life(10, Kind.ACTIVATIONS, 1, 8),
        Life(20, Kind.ACTIVATIONS, 2, 7),
        Life(40, Kind.TEMPORARY, 5, 6),
    ),
    phases=(Phase(Stage.SETUP, None, 0), Phase(Stage.FORWARD, 0, 0), Phase(Stage.BACKWARD, 0, 4)),
    end=9,
)


def test_the_peak_is_the_fullest_moment_and_knows_its_phase():
    assert (TRACE.peak.clock, TRACE.peak.num_bytes, str(TRACE.peak.phase)) == (5, 170, "backward, layer 0")
    assert TRACE.peak.by_kind[Kind.PAGED_OPTIMIZER] == 50


def test_each_phase_has_its_own_height():
    assert [height for _, height in TRACE.highest] == [100, 130, 170]


def test_each_kind_has_its_own_height():
    assert TRACE.largest[Kind.ACTIVATIONS] == 30
    assert TRACE.largest[Kind.TEMPORARY] == 40


def test_what_dies_at_a_tick_is_gone_at_it():
    assert TRACE.at(7).by_kind[Kind.ACTIVATIONS] == 10
    assert Kind.ACTIVATIONS not in TRACE.at(8).by_kind


def test_a_thinned_timeline_keeps_the_peak():
    thinned = TRACE.timeline(3)
    assert len(thinned) <= 3
    assert max(moment.num_bytes for moment in thinned) == TRACE.peak.num_bytes
    assert [moment.clock for moment in thinned] == sorted(moment.clock for moment in thinned)


def test_a_timeline_needs_a_point():
    with pytest.raises(ValueError, match="0 points"):
        TRACE.timeline(0)
