"""What is held from start to end, to the byte, against closed forms."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from transformers import LlamaConfig

from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.plan.trace.optimizers import PAGED_FROM
from qlora_cli.plan.trace.step import fake_step
from tests.plan.bases import AMPERE, request_for

HIDDEN, INTERMEDIATE, KEYS, LAYERS, VOCABULARY, RANK = 1024, 2816, 256, 2, 4096, 16

MATRICES = [
    (HIDDEN, HIDDEN),
    (KEYS, HIDDEN),
    (KEYS, HIDDEN),
    (HIDDEN, HIDDEN),
    (INTERMEDIATE, HIDDEN),
    (INTERMEDIATE, HIDDEN),
    (HIDDEN, INTERMEDIATE),
] * LAYERS
"""Outputs and inputs of the linear layers of all decoder layers."""

ADAPTERS = [size for outputs, inputs in MATRICES for size in (RANK * inputs, outputs * RANK)]
"""Elements of every A and B."""


@lru_cache
def largest(**settings):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    return fake_step(request_for(config, AMPERE, **settings)).largest


def blocks(num_elements: int, size: int) -> int:
    return -(-num_elements // size)


def test_four_bit_weights_take_half_a_byte_each():
    assert largest()[MemoryKind.BASE_QUANTIZED] == sum(outputs * inputs for outputs, inputs in MATRICES) // 2


@pytest.mark.parametrize("double_quant", [True, False])
def test_constants_are_those_of_the_paper_and_the_tables_that_each_weight_carries(double_quant):
    """Blocks of 64 with one float32, or one byte, a float32 for 256 of them and their offset; then the code tables."""
    expected = 0
    for outputs, inputs in MATRICES:
        num_blocks = blocks(outputs * inputs, 64)
        expected += 16 * 4  # the 16 levels of NF4
        expected += num_blocks + blocks(num_blocks, 256) * 4 + 4 + 256 * 4 if double_quant else num_blocks * 4
    assert largest(quantization__double_quant=double_quant)[MemoryKind.QUANTIZATION_CONSTANTS] == expected


def test_int8_weights_take_a_byte_each_and_a_float32_a_row():
    found = largest(quantization__quant_type="int8")
    assert found[MemoryKind.BASE_QUANTIZED] == sum(outputs * inputs for outputs, inputs in MATRICES)
    assert found[MemoryKind.QUANTIZATION_CONSTANTS] == sum(outputs * 4 for outputs, _ in MATRICES)


def test_what_is_not_quantized_is_embeddings_head_and_norms_in_16_bit():
    rotary = 64 * 4 * 2  # inverse frequencies of 128-wide heads in float32, with the copy that is scaled
    expected = (2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN) * 2 + rotary
    assert largest()[MemoryKind.BASE_16BIT] == expected


@pytest.mark.parametrize(("in_float32", "width"), [(True, 4), (False, 2)])
def test_the_adapter_takes_r_times_inputs_and_outputs(in_float32, width):
    found = largest(lora__autocast_adapter_dtype=in_float32)
    expected = sum(RANK * (outputs + inputs) for outputs, inputs in MATRICES) * width
    assert found[MemoryKind.ADAPTER] == found[MemoryKind.GRADIENTS] == expected


def test_adamw_holds_two_float32_moments_a_parameter():
    found = largest(training__optim="adamw_torch")
    assert found[MemoryKind.OPTIMIZER] == 2 * 4 * sum(ADAPTERS)


def test_fused_adamw_counts_its_steps_on_the_device():
    found = largest(training__optim="adamw_torch_fused")
    assert found[MemoryKind.OPTIMIZER] == 2 * 4 * sum(ADAPTERS) + 4 * len(ADAPTERS)


def eight_bit_state(num_elements: int) -> int:
    """Two bytes an element and two float32 for each 256 (arXiv:2110.02861); 32 bit under 4,096 elements."""
    return 8 * num_elements if num_elements < 4096 else 2 * num_elements + 2 * 4 * blocks(num_elements, 256)


CODE_MAPS = 2 * 256 * 4
"""The signed and the unsigned map of 8-bit states, shared by all parameters."""


def test_eight_bit_adamw_holds_two_bytes_and_its_block_constants():
    found = largest(training__optim="adamw_8bit")
    assert found[MemoryKind.OPTIMIZER] == sum(map(eight_bit_state, ADAPTERS)) + CODE_MAPS


def test_small_tensors_keep_32_bit_states():
    found = largest(training__optim="adamw_8bit", lora__r=2)
    sizes = [size * 2 // RANK for size in ADAPTERS]
    assert min(sizes) < 4096 < max(sizes)
    assert found[MemoryKind.OPTIMIZER] == sum(map(eight_bit_state, sizes)) + CODE_MAPS


@pytest.mark.parametrize(("name", "moments"), [("paged_adamw_8bit", 2), ("paged_adamw_32bit", 8)])
def test_moments_of_large_tensors_are_paged(name, moments):
    rank = 128
    found = largest(training__optim=name, lora__r=rank)
    sizes = [size * rank // RANK for size in ADAPTERS]
    paged = [size for size in sizes if size >= PAGED_FROM]
    assert 0 < len(paged) < len(sizes)
    assert found[MemoryKind.PAGED_OPTIMIZER] == moments * sum(paged)


def test_paged_state_is_in_no_sum():
    config = LlamaConfig(hidden_size=1024, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=8)
    trace = fake_step(request_for(config, AMPERE, lora__r=128))
    start = trace.at(0)
    assert start.by_kind[MemoryKind.PAGED_OPTIMIZER] > 0
    assert start.num_bytes == sum(start.by_kind.values()) - start.by_kind[MemoryKind.PAGED_OPTIMIZER]


def test_a_paged_optimizer_is_not_paged_on_a_cpu(base_folder):
    config = LlamaConfig(hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2)
    assert MemoryKind.PAGED_OPTIMIZER not in fake_step(request_for(config, lora__r=512)).largest
    assert torch.cuda.is_available() is False
