"""What each setting saves, and the line that turns it."""

from __future__ import annotations

import shlex

import pytest

from qlora_cli.plan import savings
from qlora_cli.plan.savings import attention_names, changes, rank_savings
from qlora_cli.plan.trace.fake_model import skeleton
from qlora_cli.plan.trace_cache import Tracer
from qlora_cli.recipe.overrides import parse_override
from tests.plan.bases import AMPERE, CONFIGS, CPU, config_of, request_for


@pytest.fixture(scope="module")
def wasteful():
    """A request in which every saving is still to be turned."""
    config = config_of("llama")
    config.hidden_size, config.intermediate_size, config.vocab_size = 512, 1024, 64
    return request_for(
        config,
        AMPERE,
        quantization__double_quant=False,
        lora__r=256,
        data__max_length=512,
        training__gradient_checkpointing=False,
        training__optim="adamw_torch",
        training__per_device_train_batch_size=8,
    )


@pytest.fixture(scope="module")
def ranked(wasteful):
    return rank_savings(wasteful)


def test_the_largest_saving_comes_first(ranked):
    saved = [saving.saved_bytes for saving in ranked]
    assert saved == sorted(saved, reverse=True)
    assert min(saved) > 0


def test_checkpointing_half_the_rows_and_half_the_length_are_among_them(ranked):
    overrides = {saving.override for saving in ranked}
    assert "--set training.gradient_checkpointing=true" in overrides
    assert "--set data.max_length=256" in overrides
    halved = "--set training.per_device_train_batch_size=4 --set training.gradient_accumulation_steps=2"
    assert halved in overrides


def test_a_saving_is_what_the_changed_plan_needs_less(wasteful, ranked):
    tracer = Tracer()
    for saving in ranked[:2]:
        changed = wasteful.changed(saving.settings)
        assert tracer.device_bytes(wasteful) - tracer.device_bytes(changed) == saving.saved_bytes


def test_every_line_is_one_that_the_reader_takes(ranked):
    for saving in ranked:
        for option, text in zip(*[iter(shlex.split(saving.override))] * 2, strict=True):
            assert option == "--set"
            override, problems = parse_override(text)
            assert override is not None
            assert problems == []


def settings_tried(request):
    return {key: value for _, settings in savings.changes(request) for key, value in settings.items()}


def test_a_knob_that_is_turned_is_not_tried(wasteful):
    turned = wasteful.changed(
        {
            "training.gradient_checkpointing": True,
            "training.optim": "paged_adamw_8bit",
            "lora.target_modules": ("q_proj",),
        }
    )
    assert not {"training.gradient_checkpointing", "training.optim", "lora.target_modules"} & set(
        settings_tried(turned)
    )


def test_a_base_in_16_bit_can_be_quantized():
    config = config_of("llama")
    config.hidden_size, config.intermediate_size = 1024, 4096
    request = request_for(config, AMPERE, quantized=False, lora__r=8, training__per_device_train_batch_size=1)
    assert "--set quantization.quant_type=nf4" in {saving.override for saving in rank_savings(request)}


def test_nothing_of_cuda_is_tried_on_a_cpu():
    tried = settings_tried(request_for(config_of("llama"), CPU, training__optim="adamw_torch"))
    assert "model.attn_implementation" not in tried
    assert tried["training.optim"] == "adamw_8bit"


def test_experts_in_4_bit_are_tried_where_there_are_some_in_16():
    kept = request_for(config_of("mixtral"), AMPERE, quantization__experts=False)
    assert settings_tried(kept)["quantization.experts"] is True
    assert "quantization.experts" not in settings_tried(request_for(config_of("mixtral"), AMPERE))
    assert "quantization.experts" not in settings_tried(
        request_for(config_of("llama"), AMPERE, quantization__experts=False)
    )


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("llama", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("phi3", ("o_proj", "qkv_proj")),
        ("gpt2", ("c_attn", "c_proj")),
        ("falcon", ("query_key_value", "dense")),
    ],
)
def test_attention_is_known_by_its_place(name, names):
    assert name in CONFIGS
    assert attention_names(skeleton(request_for(config_of(name)))) == names


def test_a_base_that_is_stored_quantized_keeps_its_storage():
    config = config_of("llama")
    config.quantization_config = {"load_in_8bit": True}
    request = request_for(config, AMPERE, quantization__quant_type="int8")
    assert not any("quantization" in key for _, settings in changes(request) for key in settings)
    config = config_of("llama")
    request = request_for(config, AMPERE, quantization__quant_type="int8")
    assert any("quantization" in key for _, settings in changes(request) for key in settings)
