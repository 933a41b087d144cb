"""Operations, time and disk against sums worked out by hand."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from qlora_cli.plan.machine.gpus import find_card
from qlora_cli.plan.parameter_counts import ParameterCounts, parameter_counts
from qlora_cli.plan.throughput import UTILIZATION, active_weights, estimate_pace, operations_per_token
from tests.plan.bases import AMPERE, config_of, request_for

LLAMA_2_7B = LlamaConfig(
    vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32
)
NUM_PARAMETERS = 6_738_415_616
FACTS = ParameterCounts(NUM_PARAMETERS, 6_476_005_376, 39_976_960, 0, 0, ())


def request_7b(**settings):
    return request_for(LLAMA_2_7B, AMPERE, **{"data__max_length": 2048, **settings})


def test_forward_and_backward_through_a_frozen_base_are_six_operations_a_weight_with_recomputation():
    without_embedding = NUM_PARAMETERS - 32_000 * 4096
    assert active_weights(request_7b(), FACTS) == without_embedding
    assert operations_per_token(request_7b(), FACTS, 2048).weights == 6 * without_embedding


def test_without_checkpointing_nothing_is_computed_twice():
    with_it = operations_per_token(request_7b(), FACTS, 2048)
    without = operations_per_token(request_7b(training__gradient_checkpointing=False), FACTS, 2048)
    assert with_it.weights == 1.5 * without.weights
    assert (with_it.adapter, without.adapter) == (8 * FACTS.num_trained, 6 * FACTS.num_trained)
    assert with_it.attention * 3 == without.attention * 4


def test_attention_grows_with_the_length_and_halves_without_a_mask():
    masked = operations_per_token(request_7b(), FACTS, 2048).attention
    assert masked == 4 * 4 * 32 * 2048 * 4096
    alone = request_7b(training__per_device_train_batch_size=1, data__packing=False)
    assert operations_per_token(alone, FACTS, 2048).attention == masked // 2
    assert operations_per_token(request_7b(), FACTS, 8192).attention == 4 * masked


def test_a_token_passes_through_its_experts_only():
    request = request_for(config_of("mixtral"), AMPERE)
    facts = parameter_counts(request)
    assert facts.num_in_fused_experts > 0
    embedding = 512 * 128
    assert active_weights(request, facts) == facts.num_base - embedding - facts.num_in_fused_experts // 2


def test_tied_embeddings_multiply_as_the_output_head():
    request = request_for(config_of("gpt2"), AMPERE)
    assert active_weights(request, parameter_counts(request)) == parameter_counts(request).num_base


def test_a_large_batch_runs_at_the_assumed_share_of_the_rate():
    card = find_card("4090")
    request = request_7b(training__per_device_train_batch_size=64)
    pace = estimate_pace(request, FACTS, card)
    bound = card.dense_tflops * 1e12 * UTILIZATION / operations_per_token(request, FACTS, 2048).total
    assert 0.99 * bound < pace.tokens_per_second < bound


def test_small_batches_pay_for_dequantization():
    card = find_card("4090")
    short = request_7b(training__per_device_train_batch_size=1, data__max_length=128)
    quantized = estimate_pace(short, FACTS, card)
    plain = estimate_pace(short, ParameterCounts(NUM_PARAMETERS, 0, FACTS.num_trained, 0, 0, ()), card)
    seconds = 128 / quantized.tokens_per_second - 128 / plain.tokens_per_second
    assert seconds == pytest.approx(6_476_005_376 * 3 * 2.5 / 1008e9)


def test_float32_has_no_estimate():
    assert estimate_pace(request_7b(model__dtype="float32"), FACTS, find_card("4090")) is None
