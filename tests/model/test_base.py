"""Bases are loaded in the precision that the recipe names, and faults say what to do."""

from __future__ import annotations

import json

import bitsandbytes as bnb
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from qlora_cli.errors import RecipeError
from qlora_cli.model.base import load_base, read_config
from qlora_cli.model.linear_layers import linear_names
from qlora_cli.recipe.schema import ModelSection, QuantizationSection


def load(folder, quantization=None, **model):
    return load_base(ModelSection(base_model=str(folder), **model), quantization)


def test_a_configuration_is_read_without_weights(tmp_path):
    LlamaConfig(hidden_size=128).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert read_config(ModelSection(base_model=str(tmp_path))).hidden_size == 128


def test_a_base_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be loaded"):
        read_config(ModelSection(base_model=str(tmp_path / "nowhere")))


def test_a_configuration_that_contradicts_itself_is_refused(tmp_path):
    settings = {"model_type": "llama", "hidden_size": 96, "num_attention_heads": 5}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RecipeError, match="not a multiple of the number of attention heads"):
        read_config(ModelSection(base_model=str(tmp_path)))


@pytest.mark.parametrize(
    ("quant_type", "double_quant", "expects_nested"),
    [("nf4", None, True), ("nf4", False, False), ("fp4", True, True)],
)
def test_four_bit_weights_are_stored_as_the_recipe_says(tiny_base, quant_type, double_quant, expects_nested):
    base = load(tiny_base, QuantizationSection(quant_type=quant_type, double_quant=double_quant))
    layer = base.model.layers[0].self_attn.q_proj
    assert isinstance(layer, bnb.nn.Linear4bit)
    assert layer.weight.numel() == 64 * 64 // 2  # two weights a byte
    assert layer.weight.quant_state.quant_type == quant_type
    assert layer.weight.quant_state.nested is expects_nested
    assert layer.compute_dtype is torch.float32
    assert not isinstance(base.lm_head, bnb.nn.Linear4bit)
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_eight_bit_weights_are_int8(tiny_base):
    base = load(tiny_base, QuantizationSection(quant_type="int8"))
    assert base.model.layers[0].mlp.up_proj.weight.dtype is torch.int8
    assert base(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_without_quantization_weights_keep_the_dtype(tiny_base):
    assert load(tiny_base, dtype="bfloat16").model.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16
    assert load(tiny_base).dtype is torch.float32


def test_skipped_modules_stay_in_16_bit_and_so_does_the_head(tiny_base):
    base = load(tiny_base, QuantizationSection(skip_modules=("down_proj",)))
    mlp = base.model.layers[0].mlp
    assert type(mlp.down_proj) is torch.nn.Linear
    assert isinstance(mlp.up_proj, bnb.nn.Linear4bit)
    assert type(base.lm_head) is torch.nn.Linear


def test_a_skipped_module_that_does_not_exist_is_an_error(tiny_base):
    with pytest.raises(RecipeError, match="no module named 'donw_proj'") as caught:
        load(tiny_base, QuantizationSection(skip_modules=("donw_proj",)))
    assert "down_proj" in caught.value.problems[0].hint


def test_conv1d_bases_are_quantized_too(tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=64, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        tmp_path
    )
    base = load(tmp_path, QuantizationSection())
    assert isinstance(base.transformer.h[0].attn.c_attn, bnb.nn.Linear4bit)
    assert linear_names(base) == ["c_attn", "c_fc", "c_proj", "lm_head"]


def test_a_base_that_is_not_there_is_one_line_with_a_hint(tmp_path):
    with pytest.raises(RecipeError, match="cannot be loaded") as caught:
        load(tmp_path / "nothing")
    assert "\n" not in caught.value.problems[0].text
    assert caught.value.problems[0].hint


def test_pickled_weights_are_not_read(tiny_base, tmp_path):
    (tmp_path / "config.json").write_text((tiny_base / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="safetensors"):
        load(tmp_path)


def test_float16_on_cpu_is_refused(tiny_base):
    with pytest.raises(RecipeError, match="float16"):
        load(tiny_base, dtype="float16")
