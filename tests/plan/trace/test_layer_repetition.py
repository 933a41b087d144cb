"""A long model's trace from a short one's is the trace of the long one."""

from __future__ import annotations

import pytest

from qlora_cli.plan.trace.layer_repetition import Pattern, extrapolate_layers, find_pattern, short_length
from qlora_cli.plan.trace.live_memory import MemoryKind, Phase, Stage
from qlora_cli.plan.trace.step import fake_step
from qlora_cli.plan.trace.timeline import Allocation, MemoryTrace
from tests.plan.bases import AMPERE, config_of, request_for


def heights(trace):
    """How full each phase is. The optimizer's scalars, a few bytes a parameter, are not repeated."""
    return [
        ((phase.stage, phase.layer), height) for phase, height in trace.highest if phase.stage is not Stage.OPTIMIZER
    ]


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_every_phase_of_every_layer_is_as_full(name):
    short, long = (fake_step(request_for(config_of(name, layers), AMPERE)) for layers in (5, 6))
    assert heights(extrapolate_layers(short, Pattern(0, 1), 6)) == heights(long)


@pytest.mark.parametrize(
    "settings",
    [
        {"training__gradient_checkpointing": False},
        {"training__optim": "adamw_torch", "training__gradient_accumulation_steps": 4},
        {"quantized": False, "lora__lora_dropout": 0.1},
    ],
    ids=str,
)
def test_it_is_so_whatever_the_recipe_says(settings):
    short, long = (fake_step(request_for(config_of("llama", layers), AMPERE, **settings)) for layers in (5, 6))
    made = extrapolate_layers(short, Pattern(0, 1), 6)
    assert heights(made) == heights(long)
    assert made.peak.by_kind == long.peak.by_kind
    assert made.highest[-1][1] == pytest.approx(long.highest[-1][1], rel=1e-3)
    assert made.at(0).by_kind == long.at(0).by_kind


def test_layers_of_two_kinds_repeat_in_pairs():
    configs = [config_of("gemma3", layers) for layers in (10, 12)]
    for config in configs:
        config.layer_types = ["sliding_attention", "full_attention"] * (config.num_hidden_layers // 2)
    short, long = (fake_step(request_for(config, AMPERE)) for config in configs)
    assert heights(extrapolate_layers(short, Pattern(0, 2), 12)) == heights(long)


def test_a_trace_without_layers_is_refused():
    trace = MemoryTrace(
        (Allocation(4, MemoryKind.TEMPORARY, 1, 2),), (Phase(Stage.SETUP, None, 0), Phase(Stage.LOSS, None, 0)), 3
    )
    with pytest.raises(ValueError, match="up and down once"):
        extrapolate_layers(trace, Pattern(0, 1), 5)


@pytest.mark.parametrize(
    ("signatures", "pattern"),
    [
        ("aaaaaaaa", Pattern(0, 1)),
        ("abababab", Pattern(0, 2)),
        ("xaaaaaaa", Pattern(1, 1)),
        ("sssssfsssssfss", Pattern(0, 6)),
        ("abcdefgh", Pattern(0, 8)),
        ("aaaaaaax", Pattern(0, 8)),
        ("a", Pattern(0, 1)),
    ],
)
def test_the_shortest_repetition_that_holds_to_the_end_is_found(signatures, pattern):
    assert find_pattern(signatures) == pattern


@pytest.mark.parametrize(("pattern", "num_layers"), [(Pattern(0, 1), 32), (Pattern(1, 1), 27), (Pattern(0, 6), 62)])
def test_a_short_model_ends_where_the_long_one_does(pattern, num_layers):
    short = short_length(pattern, num_layers)
    assert (num_layers - short) % pattern.period == 0
    assert short >= pattern.lead + 5 * pattern.period
