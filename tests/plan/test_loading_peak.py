"""The memory of loading: what the loaded model keeps, and one weight unpacked."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from qlora_cli.model.base import load_base
from qlora_cli.plan.loading_peak import loading_peak
from qlora_cli.plan.parameter_counts import parameter_counts
from qlora_cli.plan.trace.fake_model import meta_model
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from tests.model.packed_bases import packed_base
from tests.plan.bases import config_of, request_for


@pytest.mark.parametrize("kind", ["nf4", "single", "int8", "none"])
def test_what_is_kept_is_what_the_loaded_model_holds(tmp_path, kind):
    packed, _ = packed_base("fp8", tmp_path)
    asked = {
        "nf4": QuantizationSection(),
        "single": QuantizationSection(double_quant=False),
        "int8": QuantizationSection(quant_type="int8"),
        "none": None,
    }[kind]
    base = load_base(ModelSection(base_model=str(packed), dequantize=True, dtype="bfloat16"), asked)
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
    assert peak.num_unpacked == 256 * 128
    assert str(peak) in parameter_counts(request).notes


def test_a_base_that_is_not_dequantized_has_no_such_note():
    assert not any("dequantize" in note for note in parameter_counts(request_for(config_of("llama"))).notes)
