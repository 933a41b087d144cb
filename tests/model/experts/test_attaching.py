"""Adapters on quantized experts learn what they would learn on the dequantized ones, and are the same files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrize

from qlora_cli.errors import RecipeError
from qlora_cli.model.adapter import attach_adapter, load_adapter, save_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.experts.packed import packed_experts
from qlora_cli.model.experts.passes import keep_experts_packed
from qlora_cli.recipe.schema import LoraSection, QuantizationSection
from tests.model.experts.bases import CPU, MIXTURES, made, with_dequantized_experts

ON_EXPERTS = LoraSection(r=4, lora_dropout=0, target_modules=("o_proj", "experts.gate_up_proj", "experts.down_proj"))
IDS = torch.arange(64).reshape(2, 32) + 5


def moved(model):
    """The model with an adapter that does something and is the same each time: neither A nor B is zero."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def twins(name, folder, lora):
    """A base with packed experts and one with the same values in plain parameters, the same adapter on both."""
    section = made(name, folder)
    packed = load_base(section, QuantizationSection(), device=CPU)
    plain = with_dequantized_experts(section, packed)
    return [moved(attach_adapter(base, lora)).train() for base in (packed, plain)]


def gradients(model):
    torch.manual_seed(2)  # some routers add noise while they train
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("how", ["checkpointing", "kept", "kept packed"])
@pytest.mark.parametrize("name", MIXTURES)
def test_gradients_are_those_through_dequantized_experts(tmp_path, name, how):
    models = twins(name, tmp_path, ON_EXPERTS)
    if how == "kept packed":
        keep_experts_packed(models[0])
    if how == "checkpointing":
        for model in models:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
    (loss, found), (expected_loss, expected) = map(gradients, models)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    assert sum("experts" in key for key in found) == 4 * sum(bool(packed_experts(m)) for m in models[0].modules())
    for key, gradient in expected.items():
        assert gradient.norm() > 0, key
        assert (found[key] - gradient).norm() <= 1e-5 * gradient.norm(), key
    assert not parametrize._cache
    assert parametrize._cache_enabled == 0


def test_all_linear_is_on_the_experts_where_peft_puts_it_there(tmp_path):
    packed, plain = twins("mixtral", tmp_path, LoraSection(r=2, lora_dropout=0))
    shapes = [{n: tuple(p.shape) for n, p in each.named_parameters() if p.requires_grad} for each in (packed, plain)]
    assert shapes[0] == shapes[1]
    assert any("experts" in name for name in shapes[0])


def test_without_its_adapter_the_base_is_what_it_was(tmp_path):
    section = made("mixtral", tmp_path)
    base = load_base(section, QuantizationSection(), device=CPU)
    with torch.no_grad():
        before = base(IDS).logits
        model = moved(attach_adapter(base, ON_EXPERTS))
        assert not torch.allclose(model(IDS).logits, before, atol=1e-4)
        with model.disable_adapter():
            assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("name", ["mixtral", "llama4"])
def test_a_saved_adapter_is_pefts_and_comes_back(tmp_path, name):
    packed, plain = twins(name, tmp_path / "base", ON_EXPERTS)
    for number, model in enumerate((packed, plain)):
        save_adapter(model, tmp_path / str(number))
    files = [load_file(tmp_path / str(number) / "adapter_model.safetensors") for number in (0, 1)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][key]) for key, tensor in files[0].items())
    configs = [json.loads((tmp_path / str(number) / "adapter_config.json").read_text()) for number in (0, 1)]
    assert sorted(configs[0].pop("target_parameters")) == sorted(configs[1].pop("target_parameters"))
    assert configs[0] == configs[1]
    section = made(name, tmp_path / "again")
    back = load_adapter(load_base(section, QuantizationSection(), device=CPU), tmp_path / "0")
    with torch.no_grad():
        assert torch.equal(back(IDS).logits, packed.eval()(IDS).logits)


@pytest.mark.parametrize("quantization", [QuantizationSection(), QuantizationSection(experts=False), None])
def test_experts_are_named_like_modules(tmp_path, quantization):
    base = load_base(made("gemma4_moe", tmp_path), quantization, device=CPU)
    names = [name for name, p in attach_adapter(base, ON_EXPERTS).named_parameters() if p.requires_grad]
    assert sum("experts" in name for name in names) == 8


def test_a_name_that_is_neither_is_refused_with_both_lists(tmp_path):
    base = load_base(made("gpt_oss", tmp_path), QuantizationSection(), device=CPU)
    with pytest.raises(RecipeError, match="'up_proj' matches no linear module") as caught:
        attach_adapter(base, LoraSection(target_modules=("up_proj",)))
    assert "its fused experts are down_proj, gate_up_proj" in str(caught.value)
    assert all(packed_experts(layer.mlp.experts) for layer in base.model.layers)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lora_dropout": 0.1}, ["take no dropout", "--set lora.lora_dropout=0"]),
        ({"use_dora": True}, ["lora.use_dora is true", "--set lora.use_dora=false"]),
        ({"init_lora_weights": "loftq"}, ["lora.init_lora_weights is loftq", "--set lora.init_lora_weights=default"]),
        ({"init_lora_weights": "calibrated"}, ["lora.init_lora_weights is calibrated"]),
        ({"init_lora_weights": "pissa"}, ["lora.init_lora_weights is pissa", "--set lora.init_lora_weights=default"]),
    ],
)
@pytest.mark.parametrize("quantization", [QuantizationSection(), None])
def test_what_no_adapter_on_experts_can_have_is_refused_with_the_way_out(tmp_path, quantization, keys, words):
    base = load_base(made("gpt_oss", tmp_path), quantization, device=CPU)
    with pytest.raises(RecipeError) as caught:
        attach_adapter(base, ON_EXPERTS.model_copy(update=keys))
    for each in (*words, "--set lora.target_modules=[q_proj,v_proj]"):
        assert each in str(caught.value)
