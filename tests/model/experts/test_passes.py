"""No dequantized weight outlives its pass, whether a backward pass will come or not."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.experts.passes import keep_experts_packed
from qlora_cli.recipe.schema import LoraSection, QuantizationSection
from tests.model.experts.bases import CPU, OffMeta, section_of
from tests.plan.bases import config_of, save_base

NUM_LAYERS = 6
IDS = torch.arange(8).reshape(1, 8) + 5


@pytest.mark.parametrize("on", ["attention", "experts"])
@pytest.mark.parametrize("name", ["mixtral", "llama4", "gpt_oss"])
def test_what_forward_leaves_to_backward_holds_no_weight(tmp_path, name, on):
    save_base(tmp_path, config_of(name, NUM_LAYERS))
    targets = {"attention": ("q_proj",), "experts": ("experts.gate_up_proj", "experts.down_proj")}[on]
    left = []
    for keeps_packed in (False, True):
        base = load_base(section_of(name, tmp_path), QuantizationSection(), device=CPU)
        model = attach_adapter(base, LoraSection(r=2, lora_dropout=0, target_modules=targets)).train()
        if keeps_packed:
            keep_experts_packed(model)
        with OffMeta() as memory:
            loss = model(IDS, labels=IDS).loss
            left.append(memory.living_bytes)
            loss.backward()
    experts = 4 * 3 * 128 * 256 * 4  # of one layer, in float32
    # The first layer has nothing below it that could learn.
    assert left[0] - left[1] >= 0.95 * (NUM_LAYERS - 1) * experts
    assert left[1] < 0.3 * left[0]


def test_a_pass_without_gradients_is_as_it_was(tmp_path):
    save_base(tmp_path, config_of("mixtral"))
    base = load_base(section_of("mixtral", tmp_path), QuantizationSection(), device=CPU)
    with torch.no_grad():
        before = base(IDS).logits
        keep_experts_packed(base)
        assert torch.equal(base(IDS).logits, before)
