"""Adapters of PEFT on integer layers."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from qlora_cli.model.integer.adapter import IntegerLoraLinear, with_integer_layers
from qlora_cli.model.integer.codes import pack
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.integer.rounding import round_to_nearest


class OneLayer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = IntegerLinear(64, 48, 4, 32)
        codes, self.up.scales, self.up.offsets = round_to_nearest(torch.randn(48, 64), 4, 32)
        self.up.codes = pack(codes, 4)
        self.norm = torch.nn.LayerNorm(64)  # a model has parameters

    def forward(self, x):
        return self.up(x)


def adapted(**settings):
    torch.manual_seed(0)
    config = with_integer_layers(LoraConfig(r=4, target_modules=["up"], init_lora_weights=False, **settings))
    return get_peft_model(OneLayer(), config)


@pytest.mark.parametrize("settings", [{}, {"use_qalora": True, "qalora_group_size": 32}], ids=["LoRA", "QA-LoRA"])
def test_an_adapter_adds_its_update_and_can_be_switched_off(settings):
    model = adapted(**settings)
    layer = model.base_model.model.up
    assert isinstance(layer, IntegerLoraLinear)
    x = torch.randn(3, 5, 64)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    seen = x.unflatten(-1, (2, 32)).mean(-1) * 2 if settings else x
    weight = layer.get_base_layer().dequantized(torch.float32)
    expected = x @ weight.T + seen @ a.T @ b.T * layer.scaling["default"]
    assert (model(x) - expected).abs().max() < 1e-4
    with model.disable_adapter():
        assert (model(x) - x @ weight.T).abs().max() < 1e-4


def test_inputs_that_do_not_lie_in_one_piece_give_the_same():
    model = adapted(use_qalora=True, qalora_group_size=32)
    x = torch.randn(5, 3, 64).transpose(0, 1)
    assert model(x).equal(model(x.contiguous()))


def test_dora_would_take_codes_for_weights_and_is_refused():
    with pytest.raises(ValueError, match="DoRA needs the norms of plain weights"):
        adapted(use_dora=True)


def test_peft_does_not_merge_codes():
    with pytest.raises(NotImplementedError, match="qlora merge"):
        adapted().merge_and_unload()
