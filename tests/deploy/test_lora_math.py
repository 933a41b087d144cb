import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from qlora_cli.deploy.lora_math import LowRankUpdate, merged_weight


def peft_layer(linear, **settings):
    torch.manual_seed(0)
    tuned = get_peft_model(nn.Sequential(linear), LoraConfig(r=3, lora_alpha=5, target_modules=["0"], **settings))
    layer = tuned.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    if settings.get("use_dora"):
        layer.lora_magnitude_vector["default"].weight.data.mul_(1.5)
    return layer.eval()


def update_of(layer):
    magnitude = layer.lora_magnitude_vector["default"].weight if layer.use_dora["default"] else None
    return LowRankUpdate(
        layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"], magnitude
    )


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_merged_weight_is_the_one_that_peft_merges(settings):
    layer = peft_layer(nn.Linear(8, 6), **settings)
    ours = merged_weight(layer.base_layer.weight.detach().clone(), update_of(layer))
    layer.merge()
    assert torch.allclose(ours, layer.base_layer.weight, atol=1e-6)


@pytest.mark.parametrize("use_dora", [False, True])
def test_conv1d_weight_is_the_one_that_peft_merges(use_dora):
    layer = peft_layer(Conv1D(6, 8), fan_in_fan_out=True, use_dora=use_dora)
    ours = merged_weight(layer.base_layer.weight.detach().clone().T, update_of(layer)).T
    layer.merge()
    assert torch.allclose(ours, layer.base_layer.weight, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_merged_weight_gives_the_output_of_base_and_adapter(settings):
    layer = peft_layer(nn.Linear(8, 6), **settings)
    x = torch.randn(5, 8)
    merged = x @ merged_weight(layer.base_layer.weight, update_of(layer)).T + layer.base_layer.bias
    assert torch.allclose(merged, layer(x), atol=1e-5)


def test_dora_rows_have_the_learned_length():
    update = LowRankUpdate(torch.randn(2, 8), torch.randn(6, 2), 0.5, torch.arange(1.0, 7.0))
    lengths = merged_weight(torch.randn(6, 8), update).norm(dim=1)
    assert torch.allclose(lengths, torch.arange(1.0, 7.0))


def test_an_update_below_the_last_bit_of_bfloat16_is_not_lost():
    update = LowRankUpdate(torch.ones(1, 2), torch.full((2, 1), 1e-3), 1.0)
    merged = merged_weight(torch.ones(2, 2, dtype=torch.bfloat16), update)
    assert torch.allclose(merged, torch.full((2, 2), 1.001))


def test_base_weight_stays_as_it_was():
    base = torch.ones(2, 2)
    merged_weight(base, LowRankUpdate(torch.ones(1, 2), torch.ones(2, 1), 1.0))
    assert torch.equal(base, torch.ones(2, 2))


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"B \[5, 2\] @ A \[2, 8\] does not fit a weight \[6, 8\]"):
        merged_weight(torch.zeros(6, 8), LowRankUpdate(torch.zeros(2, 8), torch.zeros(5, 2), 1.0))
