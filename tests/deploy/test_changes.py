import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from qlora_cli.deploy.changes import Addition, ExpertsChange, LinearChange, Replacement, TokenRows, are_same
from qlora_cli.deploy.lora_math import LowRankUpdate, merged_weight

WEIGHT = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
UPDATE = LowRankUpdate(torch.ones(2, 8), torch.arange(24.0).view(12, 2), 0.5)


def in_parts(change, rows, step):
    parts = (rows[start : start + step].clone() for start in range(0, len(rows), step))  # their memory may be used
    return torch.cat([change.apply(part, start) for start, part in zip(range(0, len(rows), step), parts, strict=True)])


@pytest.mark.parametrize("magnitude", [None, torch.arange(1.0, 13.0)])
@pytest.mark.parametrize("step", [1, 5, 12])
def test_rows_can_be_changed_in_parts(magnitude, step):
    update = LowRankUpdate(UPDATE.A_RI, UPDATE.B_OR, UPDATE.scaling, magnitude)
    expected = merged_weight(WEIGHT, update)
    assert torch.allclose(in_parts(LinearChange(update, is_turned=False), WEIGHT, step), expected)


def test_rows_of_a_turned_weight_are_its_inputs():
    turned = WEIGHT.T.contiguous()
    change = LinearChange(UPDATE, is_turned=True)
    assert change.rows_at_once is None
    assert torch.allclose(in_parts(change, turned, 3), merged_weight(WEIGHT, UPDATE).T)


def test_a_turned_weight_with_magnitudes_needs_all_its_rows_at_once():
    update = LowRankUpdate(UPDATE.A_RI, UPDATE.B_OR, UPDATE.scaling, torch.ones(12))
    change = LinearChange(update, is_turned=True)
    assert change.rows_at_once == 0
    assert torch.allclose(change.apply(WEIGHT.T.clone(), 0), merged_weight(WEIGHT, update).T)


def test_a_replacement_gives_its_own_rows():
    assert torch.equal(in_parts(Replacement(WEIGHT * 2), WEIGHT, 5), WEIGHT * 2)


@pytest.mark.parametrize("step", [1, 5, 12])
def test_rows_of_single_tokens_replace_those_of_the_base_and_no_others(step):
    rows = torch.full((2, 8), 7.0)
    changed = in_parts(TokenRows(torch.tensor([11, 3]), rows), WEIGHT.clone(), step)
    assert torch.equal(changed[[11, 3]], rows)
    others = [row for row in range(12) if row not in (3, 11)]
    assert torch.equal(changed[others], WEIGHT[others])


def test_a_bias_is_added_to_that_of_the_base():
    bias = torch.arange(8.0)
    assert torch.equal(Addition(bias).apply(torch.ones(1, 8), 0), 1 + bias[None])


def test_tokens_of_two_tables_are_the_same_where_ids_and_rows_are():
    first, ids = TokenRows(torch.tensor([1]), torch.ones(1, 4)), torch.tensor([1])
    assert are_same(first, TokenRows(ids, torch.ones(1, 4)))
    assert not are_same(first, TokenRows(ids, torch.zeros(1, 4)))
    assert not are_same(first, None)


@pytest.mark.parametrize("is_output_first", [True, False])
def test_merged_experts_are_those_that_peft_merges(is_output_first):
    torch.manual_seed(0)
    module = nn.Module()
    module.experts = nn.Module()
    module.experts.weight = nn.Parameter(torch.randn(4, 6, 10))
    module.experts.is_transposed = not is_output_first
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[], target_parameters=["experts.weight"])
    wrapper = get_peft_model(module, config).base_model.model.experts
    nn.init.normal_(wrapper.lora_B["default"].weight)
    update = LowRankUpdate(
        wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight, wrapper.scaling["default"]
    )
    weight = module.experts.get_param().detach().clone()
    change = ExpertsChange(update, len(weight), is_output_first)
    ours = in_parts(change, weight.reshape(-1, weight.shape[-1]), change.rows_at_once).view(weight.shape)
    assert torch.allclose(ours, weight + wrapper.get_delta_weight("default"), atol=1e-6)
    assert not torch.allclose(ours, weight, atol=0.1)
    assert torch.equal(weight, module.experts.get_param())
