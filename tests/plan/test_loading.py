"""What loading takes of the device is part of the plan where it is more than a step takes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, MixtralConfig

from qlora_cli.model.base import load_base
from qlora_cli.model.integer.calibrated import write_calibrated_base
from qlora_cli.plan.budget import LOADING, device_memory
from qlora_cli.plan.loading import calibration_peak, loading_bytes, loading_peak
from qlora_cli.plan.parameter_counts import parameter_counts
from qlora_cli.plan.trace.fake_model import meta_model
from qlora_cli.plan.trace.step import fake_step
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from tests.model.experts.bases import CPU, OffMeta, section_of
from tests.model.packed_bases import packed_base
from tests.plan.bases import AMPERE, config_of, request_for, save_base

ON_ROWS = {"method": "int", "bits": 4, "group_size": 64, "calibration": "rows"}


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "llama4"])
def test_loading_takes_no_more_than_is_planned_and_not_much_less(tmp_path, name):
    config = config_of(name, 4)
    save_base(tmp_path, config)
    with OffMeta() as memory:
        base = load_base(section_of(name, tmp_path), QuantizationSection(), device=CPU)
    request = request_for(config)
    planned = loading_bytes(request, fake_step(request))
    assert base is not None
    assert 0.6 * planned < memory.peak_bytes <= planned


def test_it_counts_where_a_step_is_smaller():
    config = MixtralConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=16,
    )
    settings = {
        "lora__target_modules": ("q_proj",),
        "data__max_length": 16,
        "training__per_device_train_batch_size": 1,
    }
    for device in (request_for(config).device, AMPERE):
        request = request_for(config, device, **settings)
        trace = fake_step(request)
        needs = device_memory(request, trace)
        more = {each.name: each.num_bytes for each in needs.overheads}[LOADING]
        assert needs.reserved_bytes == loading_bytes(request, trace) > needs.allocated_bytes
        assert more > 0


@pytest.mark.parametrize("quantization", [None, {"quant_type": "int8"}, {"experts": False}])
def test_without_experts_in_4_bit_there_is_nothing_to_pack(quantization):
    settings = {f"quantization__{key}": value for key, value in (quantization or {}).items()}
    request = request_for(config_of("mixtral"), quantized=quantization is not None, **settings)
    assert loading_bytes(request, fake_step(request)) == 0


def test_without_experts_there_is_nothing_to_pack():
    request = request_for(config_of("llama"))
    assert loading_bytes(request, fake_step(request)) == 0


@pytest.mark.parametrize("stored", ["fp8", "fp8 experts", "mxfp4"])
@pytest.mark.parametrize("kind", ["nf4", "single", "int8", "none"])
def test_what_is_kept_is_what_the_loaded_model_holds(tmp_path, kind, stored):
    packed, _ = packed_base(stored, tmp_path)
    asked = {
        "nf4": QuantizationSection(),
        "single": QuantizationSection(double_quant=False),
        "int8": QuantizationSection(quant_type="int8"),
        "none": None,
    }[kind]
    attention = "eager" if stored == "mxfp4" else "sdpa"  # gpt-oss has no other
    section = ModelSection(base_model=str(packed), dequantize=True, dtype="bfloat16", attn_implementation=attention)
    base = load_base(section, asked)
    held = 0
    for parameter in base.parameters():
        held += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        for constants in [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]:
            held += constants.numel() * constants.element_size()
        if getattr(parameter, "SCB", None) is not None:
            held += parameter.SCB.numel() * 4
    settings = {"quantized": False} if asked is None else {f"quantization__{k}": v for k, v in asked if v is not None}
    config = AutoConfig.from_pretrained(packed)
    request = request_for(config, model__dtype="bfloat16", model__dequantize=True, **settings)
    peak = loading_peak(meta_model(request))
    assert peak.resting_bytes == held
    if stored == "fp8":
        assert peak.num_unpacked == 256 * 128
    assert str(peak) in parameter_counts(request).notes


def test_a_base_that_is_not_dequantized_has_no_such_note():
    assert not any("dequantize" in note for note in parameter_counts(request_for(config_of("llama"))).notes)


def calibrated_request(config, base):
    settings = {f"quantization__{key}": value for key, value in ON_ROWS.items()}
    return request_for(config, data__max_length=64, model__base_model=str(base), **settings)


def test_rounding_on_rows_takes_no_more_than_is_planned_and_not_much_less(tmp_path):
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    save_base(tmp_path / "base", config)
    model = ModelSection(base_model=str(tmp_path / "base"), dtype="float32")
    rows = [{"input_ids": torch.randint(512, (1, 64))}]
    with OffMeta() as memory:
        write_calibrated_base(model, QuantizationSection(**ON_ROWS), rows, tmp_path / "integers")
    planned = calibration_peak(calibrated_request(config, tmp_path / "base")).num_bytes
    assert 0.6 * planned < memory.peak_bytes <= planned


def test_what_rounding_on_rows_takes_is_part_of_the_plan():
    request = calibrated_request(config_of("llama"), "tiny")
    peak = calibration_peak(request)
    trace = fake_step(request)
    assert loading_bytes(request, trace) == peak.num_bytes > peak.plain_bytes
    assert device_memory(request, trace).reserved_bytes >= peak.num_bytes
    assert str(peak) in parameter_counts(request).notes
    assert loading_bytes(request.changed({"quantization.calibration": "none"}), trace) == 0
