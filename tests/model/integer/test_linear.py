"""The integer layer against a dense one of the same numbers."""

import pytest
import torch

from qlora_cli.model.integer.codes import pack, unpack
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.integer.rounding import round_to_nearest


def integer_linear(weight, bits, group_size=32, bias=None):
    codes, scales, offsets = round_to_nearest(weight, bits, group_size)
    layer = IntegerLinear(weight.shape[1], weight.shape[0], bits, group_size, bias)
    layer.codes, layer.scales, layer.offsets = pack(codes, bits), scales, offsets
    return layer


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_packed_codes_come_back_and_take_their_bits(bits):
    codes = torch.randint(2**bits, (5, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert packed.shape == (5, 96 * bits // 8)
    assert unpack(packed, bits).equal(codes)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_output_and_gradient_are_those_of_a_dense_layer(bits):
    torch.manual_seed(0)
    bias = torch.nn.Parameter(torch.randn(48))
    layer = integer_linear(torch.randn(48, 128), bits, bias=bias)
    codes = unpack(layer.codes, bits).view(48, 4, 32).float()
    dense = (codes * layer.scales.float().unsqueeze(-1) + layer.offsets.float().unsqueeze(-1)).view(48, 128)
    x = torch.randn(2, 7, 128, requires_grad=True)
    copied = x.detach().clone().requires_grad_()
    got, expected = layer(x), torch.nn.functional.linear(copied, dense, bias)
    slope = torch.randn_like(expected)
    got.backward(slope)
    expected.backward(slope)
    assert (got - expected).abs().max() < 1e-5
    assert (x.grad - copied.grad).abs().max() < 1e-5


def test_only_packed_tensors_are_kept_for_the_backward_pass():
    layer = integer_linear(torch.randn(64, 128), bits=4)
    x = torch.randn(3, 128, dtype=torch.bfloat16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(x)
    assert {tensor.data_ptr() for tensor in kept} == {
        tensor.data_ptr() for tensor in (layer.codes, layer.scales, layer.offsets)
    }


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_clipped_range_never_has_more_error_than_the_whole_one(bits):
    weight = torch.distributions.StudentT(3.0).sample((32, 256))
    layer = integer_linear(weight, bits)
    groups = weight.view(32, 8, 32)
    low, high = groups.amin(-1, keepdim=True).half().float(), groups.amax(-1, keepdim=True)
    step = ((high - groups.amin(-1, keepdim=True)) / (2**bits - 1)).half().float()
    whole = ((groups - low) / step).round().clamp(0, 2**bits - 1) * step + low
    error = (layer.dequantized(torch.float32).view_as(groups) - groups).square().sum(-1)
    assert (error <= (whole - groups).square().sum(-1) * (1 + 1e-5)).all()
    assert error.sum() < 0.95 * (whole - groups).square().sum()


def test_a_group_of_equal_weights_is_one_level():
    weight = torch.full((2, 32), 0.5)
    assert integer_linear(weight, bits=2).dequantized(torch.float32).equal(weight)
