"""Parameters are counted by how they are stored; experts that stay in 16 bit are called by name."""

from __future__ import annotations

import re

import pytest

from qlora_cli.plan.parameter_counts import parameter_counts
from tests.model.bases import MULTIMODAL
from tests.plan.bases import AMPERE, config_of, request_for


def test_weights_are_counted_before_they_are_packed():
    facts = parameter_counts(request_for(config_of("llama"), AMPERE))
    attention, mlp = 128 * (128 + 64 + 64 + 128), 3 * 128 * 256
    assert facts.num_quantized == 2 * (attention + mlp)
    assert facts.num_base == facts.num_quantized + 2 * 512 * 128 + 5 * 128
    assert facts.num_in_fused_experts == 0
    assert facts.notes == ()


def test_experts_that_are_not_quantized_are_said_with_their_bytes():
    config = config_of("mixtral")
    config.intermediate_size = 4096
    facts = parameter_counts(request_for(config, AMPERE, quantization__experts=False))
    experts = 2 * 4 * 3 * 128 * 4096
    assert facts.num_in_fused_experts == experts
    [note] = facts.notes
    assert "fused weights of three dimensions" in note
    assert f"{2 * experts / 2**30:.1f} GiB" in note  # bfloat16
    assert "98% of its parameters stay in 16 bit" in note
    assert "without `experts: false` quantizes them too" in note


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_experts_that_are_quantized_are_counted_so(quant_type):
    config = config_of("mixtral")
    kept = parameter_counts(request_for(config, AMPERE, quantization__experts=False))
    facts = parameter_counts(request_for(config, AMPERE, quantization__quant_type=quant_type))
    experts = 2 * 4 * 3 * 128 * 256
    assert facts.num_in_fused_experts == kept.num_in_fused_experts == experts
    assert facts.num_quantized == kept.num_quantized + experts
    assert facts.num_base == kept.num_base
    assert facts.notes == ()


def test_int8_leaves_experts_as_they_are_and_the_plan_says_so():
    [note] = parameter_counts(request_for(config_of("mixtral"), AMPERE, quantization__quant_type="int8")).notes
    assert "linear layers only" in note


def test_without_quantization_there_is_nothing_to_say():
    assert parameter_counts(request_for(config_of("mixtral"), AMPERE, quantized=False)).notes == ()


def test_a_base_whose_layers_are_not_swapped_is_said_to_stay_as_it_is():
    facts = parameter_counts(request_for(config_of("falcon"), AMPERE))
    assert facts.num_quantized == 0
    [note] = facts.notes
    assert "nothing of this base is quantized" in note
    assert "FalconForCausalLM" in note


@pytest.mark.parametrize(
    ("architecture", "effect"),
    [("gpt2", "rows beyond cannot be trained on"), ("llama", "it has never seen later ones")],
)
def test_rows_beyond_the_positions_of_the_base_are_said(architecture, effect):
    config = config_of(architecture)
    positions = config.max_position_embeddings
    assert not parameter_counts(request_for(config, AMPERE, data__max_length=positions)).notes
    [note] = parameter_counts(request_for(config, AMPERE, data__max_length=positions + 1)).notes
    assert note == (
        f"this base was made for {positions:,} positions, and data.max_length is {positions + 1:,}: {effect}."
    )


def test_a_tower_that_is_loaded_is_said_with_its_bytes():
    config = MULTIMODAL["gemma3"]().config
    config.vision_config.hidden_size, config.vision_config.intermediate_size = 1024, 4096
    config.vision_config.num_hidden_layers = 4
    facts = parameter_counts(request_for(config, AMPERE))
    linear = 4 * (4 * 1024 * 1024 + 2 * 1024 * 4096)
    [note] = facts.notes
    assert "text does not go through model.vision_tower: " in note
    num_bytes = float(re.search(r"take ([\d.]+) GiB", note)[1]) * 2**30
    assert linear / 2 < num_bytes < 2 * linear  # four bits a weight of the linear layers, not all in 16 bit
    adapted = parameter_counts(request_for(MULTIMODAL["gemma3"]().config, AMPERE))
    assert facts.num_trained == adapted.num_trained
    assert facts.num_base > linear


def test_a_tower_that_is_not_loaded_is_said_too():
    facts = parameter_counts(request_for(MULTIMODAL["qwen3_5_vl"]().config, AMPERE))
    assert facts.notes == (
        "the language model of this base is loaded alone, as Qwen3_5ForCausalLM; its other parts take no memory.",
    )
