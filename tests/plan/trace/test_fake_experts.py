"""Fake experts take the bytes that loading gives real ones, and take an adapter as they do."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from qlora_cli.errors import RecipeError
from qlora_cli.model.base import load_base
from qlora_cli.model.experts.packed import packed_experts
from qlora_cli.plan.trace.fake_experts import is_marked
from qlora_cli.plan.trace.fake_model import fake_model, fake_tensors, meta_model
from qlora_cli.plan.trace.step import count_step, fake_step
from qlora_cli.recipe.schema import ModelSection
from tests.plan.bases import config_of, real_model, request_for, trl_loss

ON_EXPERTS = {"lora__target_modules": ("o_proj", "experts.gate_up_proj", "experts.down_proj")}


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization__double_quant": False},
        {"quantization__quant_type": "fp4", "model__dtype": "bfloat16"},
        {"quantization__experts": False},
        {"quantization__skip_modules": ("experts",)},
        {"quantization__skip_modules": ("gate_up_proj",)},
        {"model__dtype": "bfloat16", "training__gradient_checkpointing": False},
        {**ON_EXPERTS, "training__gradient_checkpointing": False},
        {**ON_EXPERTS, "model__dtype": "bfloat16", "training__gradient_accumulation_steps": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["qwen3_moe", "llama4"])
def test_a_step_is_planned_to_the_byte_whatever_the_recipe_says_of_experts(base_folder, name, settings):
    folder = base_folder(name)
    request = request_for(AutoConfig.from_pretrained(folder), **settings)
    real, fake = count_step(real_model(request, folder), request, trl_loss), fake_step(request)
    assert fake.at(0).by_kind == real.at(0).by_kind
    assert fake.largest == real.largest
    for (phase, height), (_, planned) in zip(real.highest, fake.highest, strict=True):
        # The stand-in for trl's loss differs from it by some small tensors.
        assert planned == height if phase.layer is not None else planned == pytest.approx(height, rel=1e-3), phase


def test_only_what_loading_quantizes_is_marked(base_folder):
    for settings, num in (({}, 4), ({"quantization__quant_type": "int8"}, 0), ({"quantized": False}, 0)):
        model = meta_model(request_for(config_of("mixtral"), **settings))
        assert sum(is_marked(parameter) for parameter in model.parameters()) == num
    model = fake_model(request_for(config_of("mixtral")), fake_tensors())
    base = load_base(
        ModelSection(base_model=str(base_folder("mixtral"))), request_for(config_of("mixtral")).recipe.quantization
    )
    count = [sum(len(packed_experts(module)) for module in each.modules()) for each in (model, base)]
    assert count == [4, 4]


def test_a_base_that_is_stored_quantized_is_planned_with_its_experts_as_they_are_stored():
    config = config_of("mixtral")
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model = meta_model(request_for(config))
    assert not any(is_marked(parameter) for parameter in model.parameters())


def test_experts_are_asked_for_where_there_are_none():
    with pytest.raises(RecipeError, match="'tiny' has no fused experts"):
        meta_model(request_for(config_of("llama"), quantization__experts=True))
