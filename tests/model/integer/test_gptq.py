"""GPTQ on one weight, against rounding to the nearest and against the method as its paper states it."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.errors import NumericError
from qlora_cli.model.integer.gptq import feedback_factor, round_with_feedback
from qlora_cli.model.integer.rounding import round_to_nearest
from qlora_cli.model.layer_inputs import DAMPING

BITS = [4, 3, 2]


def correlated_moment(num_features):
    """H of inputs that lie near a few directions."""
    x = torch.randn(400, 8) @ torch.randn(8, num_features) + 0.1 * torch.randn(400, num_features)
    return x.T @ x


def dequantized(codes, scales, offsets):
    groups = codes.double().unflatten(1, (scales.shape[1], -1))
    return (groups * scales.double()[..., None] + offsets.double()[..., None]).flatten(1)


def output_error(weight, parts, moment):
    """Sum of squared differences of the outputs."""
    error = dequantized(*parts) - weight.double()
    return torch.trace(error @ moment.double() @ error.T)


@pytest.mark.parametrize("bits", BITS)
def test_without_correlation_it_rounds_to_the_nearest(bits):
    torch.manual_seed(bits)
    weight = torch.randn(24, 128)
    feedback = feedback_factor(torch.eye(128) * 7.0, "layer")
    found_and_nearest = round_with_feedback(weight, feedback, bits, 32), round_to_nearest(weight, bits, 32)
    for found, nearest in zip(*found_and_nearest, strict=True):
        assert found.dtype == nearest.dtype
        assert found.equal(nearest)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64])
def test_on_correlated_inputs_the_outputs_are_nearer(bits, group_size):
    torch.manual_seed(bits)
    weight, moment = torch.randn(48, 128), correlated_moment(128)
    before = weight.clone()
    feedback = feedback_factor(moment.clone(), "layer")
    found = output_error(weight, round_with_feedback(weight, feedback, bits, group_size), moment)
    assert found < 0.6 * output_error(weight, round_to_nearest(weight, bits, group_size), moment)
    assert weight.equal(before)


def as_in_the_paper(weight, moment, bits, group_size):
    """One column after the other, H of what is left inverted anew for each, in float64."""
    weight = weight.double().clone()
    moment = moment.double() + DAMPING * moment.double().diagonal().mean() * torch.eye(len(moment), dtype=torch.double)
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    for i in range(weight.shape[1]):
        if i % group_size == 0:
            _, scale, offset = round_to_nearest(weight[:, i : i + group_size].float(), bits, group_size)
        codes[:, i : i + 1] = ((weight[:, i : i + 1] - offset.double()) / scale.double()).round().clamp(0, 2**bits - 1)
        rounded = codes[:, i] * scale.double()[:, 0] + offset.double()[:, 0]
        inverse = torch.linalg.inv(moment[i:, i:])
        weight[:, i:] -= ((weight[:, i] - rounded) / inverse[0, 0])[:, None] * inverse[0]
    return codes


@pytest.mark.parametrize("bits", BITS)
def test_each_error_moves_the_columns_to_come_as_the_paper_has_it(bits):
    torch.manual_seed(bits)
    weight, moment = torch.randn(32, 96), correlated_moment(96)
    codes, _, _ = round_with_feedback(weight, feedback_factor(moment.clone(), "layer"), bits, 32)
    expected = as_in_the_paper(weight, moment, bits, 32)
    assert (codes == expected).float().mean() > 0.99  # float32 decides a tie otherwise now and then
    assert (codes == round_to_nearest(weight, bits, 32)[0]).float().mean() < 0.95


def test_a_layer_that_no_token_reaches_gets_no_feedback():
    assert feedback_factor(torch.zeros(32, 32), "layer").equal(torch.eye(32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused_with_the_layer_s_name(value):
    moment = torch.eye(32)
    moment[3, 3] = value
    with pytest.raises(NumericError, match=r"layer 'model\.layers\.1\.mlp\.up_proj' gets inputs that are not finite"):
        feedback_factor(moment, "model.layers.1.mlp.up_proj")
