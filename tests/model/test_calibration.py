"""CLoQ: the best product for the inputs that were seen, and a start nearer to the 16-bit base than LoftQ's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from qlora_cli.errors import NumericError
from qlora_cli.model import calibration
from qlora_cli.model.adapter import attach_adapter, save_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.calibration import calibrated_values
from qlora_cli.model.initialization import (
    QuantizationErrors,
    _best_rank_r,
    of_groups,
    quantization_error_values,
    set_adapter_values,
)
from qlora_cli.model.integer.adapter import with_integer_layers
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection
from tests.model.integer.test_linear import integer_linear
from tests.model.test_initialization import gpt2_folder

NF4 = QuantizationSection()
INT3 = QuantizationSection(method="int", bits=3)
INT2 = QuantizationSection(method="int", bits=2)

TICKETS = Path(__file__).parents[2] / "recipes" / "data" / "tickets_train.jsonl"


def windows(folder, first, end, length=64):
    """Rows of the corpus that the base was trained on, [rows, length]."""
    tokenizer = load_tokenizer(ModelSection(base_model=str(folder)))
    ids = tokenizer(TICKETS.read_text("utf-8")[:40_000], verbose=False)["input_ids"]
    return torch.tensor(ids[first * length : end * length]).view(-1, length)


def batches(rows):
    return [{"input_ids": some, "labels": some} for some in rows.split(16)]


def quantized(folder, r=8, quantization=NF4, **lora):
    section = LoraSection(r=r, lora_alpha=r / 2, **lora)  # scaling 0.5: an init that forgets it is off by a factor
    return attach_adapter(load_base(ModelSection(base_model=str(folder)), quantization), section)


@pytest.mark.parametrize(
    ("quantization", "r", "use_qalora", "most"),
    [
        (NF4, 8, False, 0.7),
        (NF4, 16, False, 0.7),
        (QuantizationSection(quant_type="fp4"), 8, False, 0.7),
        (INT3, 8, False, 0.7),
        (INT2, 8, True, 0.95),  # its A has 2 to 6 columns here
    ],
    ids=["nf4", "nf4 r 16", "fp4", "int3", "int2 QA-LoRA"],
)
def test_the_start_is_nearer_to_the_16_bit_base_than_those_of_loftq_and_none(
    trained_base, quantization, r, use_qalora, most
):
    model = ModelSection(base_model=str(trained_base))
    held_out = windows(trained_base, 32, 56)
    wanted = logprobs(AutoModelForCausalLM.from_pretrained(trained_base), held_out)
    tuned = quantized(trained_base, r, quantization, use_qalora=use_qalora)
    calibrated = calibrated_values(tuned, model, batches(windows(trained_base, 0, 32)))

    def divergence():
        return (wanted.exp() * (wanted - logprobs(tuned, held_out))).sum(-1).mean().item()

    plain = divergence()
    set_adapter_values(tuned, quantization_error_values(tuned, model))
    loftq = divergence()
    set_adapter_values(tuned, calibrated)
    assert divergence() < most * loftq < most * plain


def logprobs(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits.log_softmax(-1)


def test_no_product_is_better_on_the_inputs_that_were_seen(trained_base, monkeypatch):
    """Error of the outputs over all tokens, against perturbed products and one that gradient descent finds."""
    monkeypatch.setattr(calibration, "DAMPING", 1e-6)
    model, rows = ModelSection(base_model=str(trained_base)), windows(trained_base, 0, 8)
    tuned = quantized(trained_base, r=4)
    values = calibrated_values(tuned, model, batches(rows))
    name = "model.layers.0.mlp.gate_proj"
    (a, b), error = values[name], QuantizationErrors(tuned, model, "calibrated").of(name)
    inputs = torch.linalg.qr(inputs_of(tuned, name, rows)).R  # the same sums of squares, of fewer rows

    def loss(a, b):
        return ((inputs @ (error - b @ a).T) ** 2).sum()

    best = loss(a, b).item()
    torch.manual_seed(0)
    for scale in torch.logspace(-4, 0, 200):
        nudged = a + scale * a.std() * torch.randn_like(a), b + scale * b.std() * torch.randn_like(b)
        assert loss(*nudged) > best * (1 - 1e-5)
    found = descended(loss, a.shape, b.shape)
    assert best <= found * (1 + 1e-5)
    assert best == pytest.approx(found, rel=0.01)
    loftq = quantization_error_values(tuned, model)[name]
    assert best < 0.95 * loss(*loftq).item()


def inputs_of(tuned, name, rows):
    seen = []
    layer = tuned.base_model.model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(end_dim=-2)))
    with torch.no_grad():
        tuned.eval()(rows)
    handle.remove()
    return seen[0]


def descended(loss, *shapes):
    torch.manual_seed(1)
    parts = [(0.05 * torch.randn(shape)).requires_grad_() for shape in shapes]
    optimizer = torch.optim.LBFGS(parts, max_iter=300, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(*parts)
        value.backward()
        return value

    optimizer.step(closure)
    return loss(*parts).item()


def test_a_and_b_share_the_norm(trained_base):
    model = ModelSection(base_model=str(trained_base))
    tuned = quantized(trained_base)
    values = calibrated_values(tuned, model, batches(windows(trained_base, 0, 2)))
    assert len(values) == 14
    for a, b in values.values():
        torch.testing.assert_close(a @ a.T, b.T @ b, rtol=1e-3, atol=1e-5)


def test_in_parts_the_values_are_the_same(trained_base, monkeypatch):
    model, rows = ModelSection(base_model=str(trained_base)), batches(windows(trained_base, 0, 2, length=16))
    whole = calibrated_values(quantized(trained_base), model, rows)
    monkeypatch.setattr(calibration, "MAX_MOMENTS_BYTES", 1)
    parts = calibrated_values(quantized(trained_base), model, rows)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(x, y) for name in whole for x, y in zip(whole[name], parts[name], strict=True))


def test_layers_with_one_input_share_its_moments(trained_base):
    tuned = quantized(trained_base)
    errors = QuantizationErrors(tuned, ModelSection(base_model=str(trained_base)), "calibrated")
    groups = calibration._layers_by_input(tuned, errors, batches(windows(trained_base, 0, 1))[0])
    first = [[name.rpartition(".")[2] for name in group] for group in groups[:4]]
    assert first == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_the_rows_change_the_start_and_the_same_rows_repeat_it(trained_base):
    model = ModelSection(base_model=str(trained_base))
    rows = windows(trained_base, 0, 4)
    one, again, other = (
        calibrated_values(quantized(trained_base), model, batches(chosen))["model.layers.1.self_attn.o_proj"][0]
        for chosen in (rows[:2], rows[:2], rows[2:])
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one.abs(), other.abs(), rtol=1e-3)


def test_a_layer_that_no_token_reached_starts_as_with_loftq():
    torch.manual_seed(0)
    error, r = torch.randn(24, 16), 4
    inputs = calibration._adapter_inputs(calibration._damped(torch.zeros(16, 16), "expert"), 16)
    a, b = calibration._best_product(error, inputs, r)
    left = torch.linalg.svdvals(error)[r:].norm()
    assert (error - b @ a).norm().item() == pytest.approx(left.item(), rel=1e-5)


@pytest.fixture
def grouped():
    """A layer in 2 bits with a QA-LoRA adapter, its plain weight, and inputs that depend on one another."""
    torch.manual_seed(0)
    weight, mixing = torch.randn(24, 256), torch.randn(256, 256)
    bias = torch.nn.Parameter(torch.zeros(24))  # PEFT reads the device off a parameter
    net = torch.nn.Sequential(integer_linear(weight, bits=2, group_size=32, bias=bias))
    config = LoraConfig(r=2, lora_alpha=1, target_modules=["0"], use_qalora=True, qalora_group_size=32)
    layer = get_peft_model(net, with_integer_layers(config)).base_model.model[0]
    return layer, weight, torch.linalg.qr(torch.randn(2000, 256) @ mixing).R  # the same sums of squares, of fewer rows


def outputs(layer, inputs, a, b):
    """As PEFT computes them with these values of A and B."""
    return functional_call(layer, {"lora_A.default.weight": a, "lora_B.default.weight": b}, inputs)


def test_no_update_of_groups_is_better_on_the_inputs_that_were_seen(grouped, monkeypatch):
    monkeypatch.setattr(calibration, "DAMPING", 1e-6)
    layer, weight, inputs = grouped
    error = (weight - layer.get_base_layer().dequantized(torch.float32)) / layer.scaling["default"]
    a, b = calibration._best_product(error, calibration._adapter_inputs(damped(inputs), 8), 2)
    best = (outputs(layer, inputs, a, b) - inputs @ weight.T).square().sum().item()

    def loss(a, b):
        return (outputs(layer, inputs, a, b) - inputs @ weight.T).square().sum() / best

    assert (a.shape, b.shape) == ((2, 8), (24, 2))
    for scale in torch.logspace(-4, 0, 50):
        nudged = a + scale * a.std() * torch.randn_like(a), b + scale * b.std() * torch.randn_like(b)
        assert loss(*nudged) > 1 - 1e-5
    assert descended(loss, a.shape, b.shape) == pytest.approx(1, abs=1e-3)
    loftq = _best_rank_r(of_groups(error, 8), 2)
    assert 1.01 < loss(*loftq) < 0.999 * loss(a, torch.zeros_like(b))


def test_inputs_that_are_all_alike_make_it_loftq_of_groups(grouped):
    """Which is the best of the updates that are the same for all weights of a group."""
    layer, weight, inputs = grouped
    stored = layer.get_base_layer().dequantized(torch.float32)
    error = (weight - stored) / layer.scaling["default"]
    a, b = _best_rank_r(of_groups(error, 8), 2)
    calibrated = calibration._best_product(error, calibration._adapter_inputs(damped(0 * inputs), 8), 2)
    torch.testing.assert_close(calibrated[1] @ calibrated[0], b @ a, rtol=1e-4, atol=1e-6)
    update = outputs(layer, torch.eye(256), a, b).T - stored
    means = (weight - stored).view(24, 8, 32).mean(-1).repeat_interleave(32, dim=1)
    U, S, Vh = torch.linalg.svd(means)
    torch.testing.assert_close(update, U[:, :2] * S[:2] @ Vh[:2], rtol=1e-3, atol=1e-4)


def damped(inputs):
    return calibration._damped(inputs.T @ inputs, "layer")


@pytest.mark.parametrize("num_columns", [64, 8])
def test_few_tokens_and_enormous_inputs_give_finite_values(num_columns):
    torch.manual_seed(0)
    inputs = torch.randn(3, 64)
    inputs[:, 5] *= 1e6
    seen = calibration._adapter_inputs(damped(inputs), num_columns)
    a, b = calibration._best_product(torch.randn(32, 64), seen, 8)
    assert torch.isfinite(a).all()
    assert torch.isfinite(b).all()


def test_inputs_that_are_not_finite_are_refused_with_the_layer():
    with pytest.raises(NumericError, match=r"layer 'a\.down_proj' gets inputs that are not finite"):
        calibration._damped(torch.full((4, 4), torch.inf), "a.down_proj")


def test_gpt2_is_calibrated_too(tmp_path):
    """Its `Conv1D` keeps weights the other way round."""
    folder = gpt2_folder(tmp_path)
    tuned = quantized(folder)
    values = calibrated_values(tuned, ModelSection(base_model=str(folder)), batches(torch.arange(128).view(2, 64)))
    errors = QuantizationErrors(tuned, ModelSection(base_model=str(folder)), "calibrated")
    assert values.keys() == errors.layers.keys() != set()
    for name, (a, b) in values.items():
        assert (errors.of(name) - b @ a).norm() < errors.of(name).norm()


def test_the_saved_adapter_is_a_plain_one(trained_base, tmp_path):
    tuned = quantized(trained_base)
    rows = batches(windows(trained_base, 0, 2))
    set_adapter_values(tuned, calibrated_values(tuned, ModelSection(base_model=str(trained_base)), rows))
    save_adapter(tuned, tmp_path)
    assert '"init_lora_weights": true' in (tmp_path / "adapter_config.json").read_text()
