"""LoftQ lowers the quantization error; PiSSA's parts add up to the weight."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.dequantize import dequantized_weight
from qlora_cli.model.initialization import quantization_error_values, set_adapter_values, split_principal
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection
from tests.model.packed_bases import packed_base

LORA = LoraSection(r=16, lora_alpha=8)  # scaling 0.5: an init that forgets it is off by a factor of two


def gpt2_folder(tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=64, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_loftq_brings_the_effective_weight_closer_to_the_original(tiny_base, tmp_path, architecture):
    folder = tiny_base if architecture == "llama" else gpt2_folder(tmp_path)
    model = ModelSection(base_model=str(folder))
    tuned = attach_adapter(load_base(model, QuantizationSection()), LORA)
    values = quantization_error_values(tuned, model)
    original = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    assert values
    for name, (a, b) in values.items():
        layer = tuned.base_model.model.get_submodule(name).get_base_layer()
        stored = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        wanted = original[f"{name}.weight"].detach()
        wanted = wanted.T if architecture == "gpt2" else wanted
        plain_error = (wanted - stored).norm()
        error = (wanted - stored - 0.5 * b @ a).norm().item()
        singular_values = torch.linalg.svdvals(wanted - stored)
        assert error == pytest.approx(singular_values[16:].norm().item(), rel=1e-3)  # Eckart-Young: nothing is closer
        assert error < 0.9 * plain_error


def test_loftq_lowers_the_error_of_the_logits(tiny_base):
    model = ModelSection(base_model=str(tiny_base))
    ids = torch.arange(32)[None]
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tiny_base)(ids).logits
        tuned = attach_adapter(load_base(model, QuantizationSection()), LoraSection(r=32)).eval()
        plain = (tuned(ids).logits - wanted).norm()
        set_adapter_values(tuned, quantization_error_values(tuned, model))
        assert (tuned(ids).logits - wanted).norm() < 0.7 * plain


def test_pissa_splits_the_base_without_changing_its_function(tiny_base, tmp_path):
    model = ModelSection(base_model=str(tiny_base))
    values = split_principal(model, LORA, tmp_path / "residual")
    ids = torch.arange(32)[None]
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(tiny_base)(ids).logits
        tuned = attach_adapter(load_base(model, None, source=str(tmp_path / "residual")), LORA).eval()
        without = (tuned(ids).logits - wanted).abs().max()
        set_adapter_values(tuned, values)
        assert (tuned(ids).logits - wanted).abs().max() < 1e-4 < without


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_a_dequantized_base_is_fitted_to_its_plain_weights(tmp_path, kind):
    packed, plain = packed_base(kind, tmp_path)
    model = ModelSection(base_model=str(packed), dequantize=True, attn_implementation="eager")
    tuned = attach_adapter(load_base(model, QuantizationSection()), LORA)
    values = quantization_error_values(tuned, model)
    original = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    assert values
    for name, (a, b) in values.items():
        layer = tuned.base_model.model.get_submodule(name)
        stored = dequantized_weight(layer.get_base_layer()).float()
        error = original.get_submodule(name).weight - stored
        assert (error - layer.scaling["default"] * b @ a).norm() < 0.95 * error.norm(), name


def test_the_residual_of_a_dequantized_base_is_plain(tmp_path):
    packed, _ = packed_base("fp8", tmp_path)
    model = ModelSection(base_model=str(packed), dequantize=True, dtype="bfloat16")
    split_principal(model, LORA, tmp_path / "residual")
    residual = load_base(model, QuantizationSection(), source=str(tmp_path / "residual"))
    assert residual.model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "nf4"
