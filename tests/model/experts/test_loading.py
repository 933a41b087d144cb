"""Experts come from disk into 4 bit weight by weight: what they take, what they read, and what never exists."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_cli.errors import RecipeError
from qlora_cli.model.base import load_base
from qlora_cli.model.experts.packed import (
    expert_parameters,
    packed_experts,
    packed_parameter,
)
from qlora_cli.recipe.schema import QuantizationSection
from tests.model.experts.bases import (
    CPU,
    MIXTURES,
    OffMeta,
    dequantized_experts,
    made,
    section_of,
    with_dequantized_experts,
)
from tests.plan.bases import config_of, save_base

WIDEST_STEP = 0.3038
"""Between -1 and -0.6962, the two levels of NF4 that lie farthest apart (arXiv:2305.14314, appendix E)."""

IDS = torch.arange(48).reshape(2, 24) + 5


def stored_bytes(parameter):
    """Packed weights, constants, the map that both levels of quantization share left out."""
    state = parameter.quant_state
    constants = [state.absmax] + ([state.offset, state.state2.absmax] if state.nested else [])
    return sum(tensor.numel() * tensor.element_size() for tensor in (parameter, *constants))


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("name", MIXTURES)
def test_every_fused_weight_takes_the_bytes_of_nf4(tmp_path, name, double_quant):
    section = made(name, tmp_path)
    plain, base = load_base(section, None), load_base(section, QuantizationSection(double_quant=double_quant))
    wanted = {
        full: parameter.numel()
        for full, module, part in expert_parameters(plain)
        for parameter in [getattr(module, part)]
    }
    found = {
        f"{path}.{part}": stored_bytes(packed_parameter(module, part))
        for path, module in base.named_modules()
        for part in packed_experts(module)
    }
    assert wanted
    assert found.keys() == wanted.keys()
    for full, size in wanted.items():
        num_blocks = size // 64
        constants = num_blocks + 4 * -(-num_blocks // 256) + 4 if double_quant else 4 * num_blocks
        assert found[full] == size // 2 + constants, full
    assert not list(expert_parameters(base))


@pytest.mark.parametrize("name", MIXTURES)
def test_weights_and_logits_are_within_the_error_of_nf4(tmp_path, name):
    section = made(name, tmp_path)
    plain, base = load_base(section, None), load_base(section, QuantizationSection())
    for path, module in base.named_modules():
        for part in packed_experts(module):
            original = plain.get_submodule(path).get_parameter(part).reshape(-1, 64)
            error = dequantized_experts(module, part).reshape(-1, 64) - original
            # Half a step, and as much again as double quantization moves the constants by.
            allowed = 1.1 * WIDEST_STEP / 2 * original.abs().amax(dim=1)
            assert (error.abs().amax(dim=1) <= allowed).all(), part
            assert error.abs().max() > 0
    with torch.no_grad():
        logits = base(IDS).logits
        assert torch.allclose(logits, with_dequantized_experts(section, base)(IDS).logits, atol=1e-5)
        linear_only = load_base(section, QuantizationSection(experts=False))(IDS).logits
        exact = plain(IDS).logits
    assert (logits - linear_only).abs().max() > 0
    assert (logits - exact).norm() < 1.2 * (linear_only - exact).norm()


def test_what_is_no_stack_of_matrices_stays_as_it_is(tmp_path):
    base = load_base(made("gpt_oss", tmp_path), QuantizationSection())
    stored = load_base(made("gpt_oss", tmp_path), None)
    for name in ("gate_up_proj_bias", "down_proj_bias"):
        path = f"model.layers.0.mlp.experts.{name}"
        assert torch.equal(base.get_parameter(path), stored.get_parameter(path))


@pytest.mark.parametrize(
    ("quantization", "num_packed"),
    [
        (QuantizationSection(), 4),
        (QuantizationSection(experts=True, quant_type="fp4"), 4),
        (QuantizationSection(experts=False), 0),
        (QuantizationSection(quant_type="int8"), 0),
        (None, 0),
        (QuantizationSection(skip_modules=("experts",)), 0),
        (QuantizationSection(skip_modules=("gate_up_proj",)), 2),
    ],
)
def test_the_recipe_says_which_are_quantized(tmp_path, quantization, num_packed):
    base = load_base(made("mixtral", tmp_path), quantization)
    readers = [reader for module in base.modules() for reader in packed_experts(module).values()]
    assert len(readers) == num_packed
    kinds = {reader.quant_state.quant_type for reader in readers}
    assert kinds <= {quantization.quant_type if quantization else None}


def test_experts_are_asked_for_where_there_are_none(tmp_path):
    section = made("llama", tmp_path)
    assert load_base(section, QuantizationSection(experts=False)) is not None
    with pytest.raises(RecipeError, match="has no fused experts") as caught:
        load_base(section, QuantizationSection(experts=True))
    assert "quantization.experts=false" in str(caught.value)


def test_a_base_without_a_weight_of_its_experts_is_refused(tmp_path):
    config = config_of("mixtral")
    model = AutoModelForCausalLM.from_config(config)
    tensors = model.state_dict()
    tensors.pop("model.layers.1.mlp.experts.down_proj")
    model.save_pretrained(tmp_path, state_dict=tensors)
    with pytest.raises(RecipeError, match=r"lacks 1 of its weights: model\.layers\.1\.mlp\.experts\.down_proj"):
        load_base(section_of("mixtral", tmp_path), QuantizationSection())


@pytest.mark.parametrize("name", ["mixtral", "llama4", "gpt_oss"])
def test_while_loading_there_is_never_more_than_one_weight_in_16_bit(tmp_path, name):
    """All storages that live, counted at each operator: nine tenths of the base are experts of eight layers."""
    config = config_of(name, num_layers=8)
    save_base(tmp_path, config)
    section = section_of(name, tmp_path)
    with OffMeta() as memory:
        base = load_base(section, QuantizationSection(), device=CPU)
    whole = [getattr(module, part) for _, module, part in expert_parameters(load_base(section, None))]
    largest = max(weight.numel() * 4 for weight in whole)
    assert base is not None
    # The experts as the files hold them, and what they are fused into.
    assert memory.peak_bytes - memory.living_bytes < 2.1 * largest
    assert sum(weight.numel() * 4 for weight in whole) > 8 * largest
