"""A packed weight reads as it was packed, however long its rows; parameters are counted whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.experts.packed import (
    expert_parameters,
    install,
    pack,
    packed_experts,
    trained_and_all,
)
from qlora_cli.recipe.schema import LoraSection, QuantizationSection
from tests.model.experts.bases import CPU, dequantized_experts, made


class Experts(nn.Module):
    num_experts = 4

    def __init__(self, shape):
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        self.reads = [self.up_proj, self.up_proj]
        return x


@pytest.mark.parametrize("shape", [(4, 8, 64), (4, 6, 96), (4, 32, 20), (4, 3, 5)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_rows_of_any_length_are_read_as_they_were(shape, is_turned):
    experts = Experts(shape)
    weight = experts.up_proj.detach()
    if is_turned:
        experts.up_proj = nn.Parameter(weight.mT.contiguous().mT)
    packed = pack(experts.up_proj.detach(), quant_type="nf4", double_quant=False)
    install(experts, "up_proj", packed)
    size = weight.numel()
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -size % 64)).view(-1, 64)
    allowed = (0.16 * blocks.abs().amax(dim=1, keepdim=True)).expand(-1, 64).flatten()[:size].view(shape)
    assert experts.up_proj.shape == shape
    assert ((experts.up_proj - weight).abs() <= allowed).all()
    assert torch.equal(experts.up_proj, dequantized_experts(experts, "up_proj"))


def test_a_weight_is_dequantized_once_in_a_pass_and_forgotten_after_it():
    experts = Experts((4, 8, 64))
    install(experts, "up_proj", pack(experts.up_proj.detach(), quant_type="nf4", double_quant=True))
    experts(torch.zeros(1))
    first, second = experts.reads
    assert first is second
    assert not parametrize._cache
    assert experts.up_proj is not first


def test_it_is_forgotten_where_the_pass_breaks_off():
    experts = Experts((4, 8, 64))
    install(experts, "up_proj", pack(experts.up_proj.detach(), quant_type="nf4", double_quant=True))
    experts.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        experts(torch.zeros(1))
    assert parametrize._cache_enabled == 0


def test_experts_are_stacks_of_as_many_matrices_as_their_module_says():
    model = nn.ModuleDict({"experts": Experts((4, 2, 2)), "other": Experts((3, 2, 2)), "conv": nn.Conv1d(4, 4, 1)})
    assert [name for name, _, _ in expert_parameters(model)] == ["experts.up_proj"]
    install(model["experts"], "up_proj", pack(torch.randn(4, 2, 2), quant_type="nf4", double_quant=True))
    assert not list(expert_parameters(model))
    assert list(packed_experts(model["experts"])) == ["up_proj"]


def test_packed_weights_are_counted_whole(tmp_path):
    lora = LoraSection(r=2, lora_dropout=0, target_modules=("q_proj",))
    counts = [
        trained_and_all(attach_adapter(load_base(made("mixtral", tmp_path), quantization, device=CPU), lora))
        for quantization in (QuantizationSection(), QuantizationSection(experts=False), None)
    ]
    assert counts[0] == counts[1] == counts[2]
