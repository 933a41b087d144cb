"""The work-arounds do what they are for."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch

from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection

pytestmark = pytest.mark.slow


def gradients(tiny_base, *, evaluates_first: bool):
    base = load_base(ModelSection(base_model=str(tiny_base)), QuantizationSection())
    torch.manual_seed(0)
    model = attach_adapter(base, LoraSection(r=4, lora_dropout=0.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    ids = torch.arange(24).view(2, 12)
    if evaluates_first:
        with torch.no_grad():
            model.eval()(ids)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_an_evaluation_in_mid_training_changes_nothing_and_every_adapter_gets_a_gradient(tiny_base):
    straight = gradients(tiny_base, evaluates_first=False)
    after_eval = gradients(tiny_base, evaluates_first=True)
    assert straight
    for name, gradient in straight.items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, after_eval[name]), name


def test_four_bit_weights_survive_an_eval_forward(tiny_base):
    base = load_base(ModelSection(base_model=str(tiny_base)), QuantizationSection()).eval()
    layers = [module for module in base.modules() if isinstance(module, bnb.nn.Linear4bit)]
    before = [bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state) for layer in layers]
    with torch.no_grad():
        base(torch.arange(12)[None])
    for layer, weight in zip(layers, before, strict=True):
        assert layer.support_avx512bf16_for_cpu is False  # the switch, where this CPU would not repack by itself
        assert torch.equal(bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state), weight)
