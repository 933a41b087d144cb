import pytest
import torch

from qlora_cli.deploy.formats.rounding import pack, quantize_rows


@pytest.fixture
def weight():
    """Most numbers are small, some are outliers, as in trained weights."""
    torch.manual_seed(0)
    weight = torch.randn(16, 256) * 0.02
    weight[::3, 7] *= 12
    weight[5] = 0
    return weight.to(torch.bfloat16)


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128, None])
def test_each_weight_is_within_half_a_step_unless_the_end_of_the_range_cuts_it(weight, num_bits, group):
    codes, scales = quantize_rows(weight, num_bits, group, torch.bfloat16)
    steps = scales.float().repeat_interleave(weight.shape[1] // scales.shape[1], 1)
    low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    error = codes.float() * steps - weight.float()
    is_cut = ((codes == low) & (error > 0)) | ((codes == high) & (error < 0))
    is_beyond = error.abs() > steps / 2 * (1 + 1e-5)
    assert not (is_beyond & ~is_cut).any()
    assert is_beyond.float().mean() < 0.02


@pytest.mark.parametrize("group", [32, 128])
def test_the_search_never_loses_against_the_scale_that_cuts_nothing(weight, group):
    codes, scales = quantize_rows(weight, 4, group, torch.float32)
    grouped = weight.float().reshape(16, -1, group)
    found = (codes.reshape(grouped.shape) * scales.unsqueeze(-1) - grouped).square().sum(-1)
    plain = (grouped.abs().amax(-1, True) / 7).clamp_min(1e-30)
    rounded = (grouped / plain).round().clamp(-8, 7) * plain
    assert found.sum() < 0.97 * (rounded - grouped).square().sum()


def test_packed_codes_are_read_back_by_arithmetic_on_the_words():
    codes = torch.randint(-8, 8, (3, 64)).to(torch.int8)
    words = pack(codes, 4).to(torch.int64) & 0xFFFFFFFF
    unpacked = torch.stack([(words >> (4 * place)) & 15 for place in range(8)], -1).reshape(3, 64) - 8
    assert torch.equal(unpacked.to(torch.int8), codes)
