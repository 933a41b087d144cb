"""A calibration's training step, run on the CPU at a tiny size; what only a GPU has is in tests/gpu."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch

from qlora_cli.errors import ArgumentError
from qlora_cli.plan.calibrate import (
    CONFIG,
    NUM_TIMED_STEPS,
    NUM_WARM_UP_STEPS,
    calibrate,
    calibration_request,
    materialized,
    timed,
    trained_step,
)
from qlora_cli.plan.parameter_counts import parameter_counts
from qlora_cli.plan.trace.fake_model import meta_model
from tests.plan.bases import AMPERE, CPU, SIZES

HERE = torch.device("cpu")


@pytest.fixture
def request_here():
    request = calibration_request(CPU, {key: SIZES[key] for key in CONFIG})
    return request.changed({"data.max_length": 64})


def test_without_a_gpu_nothing_is_measured():
    with pytest.raises(ArgumentError, match="torch sees no CUDA GPU"):
        calibrate()


def test_the_model_is_real_and_its_layers_are_in_4_bit(request_here):
    model = materialized(meta_model(request_here), request_here, HERE)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    four_bit = [each for each in model.modules() if isinstance(each, bnb.nn.Linear4bit)]
    assert len(four_bit) == 2 * 7
    for layer in four_bit:
        assert layer.weight.dtype is torch.uint8
        restored = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert restored.shape == (layer.out_features, layer.in_features)
        assert restored.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_step_moves_the_adapter_and_nothing_else(request_here, monkeypatch):
    made = []
    monkeypatch.setattr(
        "qlora_cli.plan.calibrate.materialized", lambda *args: made.append(materialized(*args)) or made[0]
    )
    step, num_operations, moved = trained_step(request_here, HERE)
    before = {name: parameter.detach().clone() for name, parameter in made[0].named_parameters()}
    step()
    changed = {name for name, parameter in made[0].named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name, parameter in made[0].named_parameters() if parameter.requires_grad}
    facts = parameter_counts(request_here)
    assert num_operations > 6 * 2 * 64 * facts.num_quantized
    assert moved == facts.num_quantized * 3 * 2.5


def test_a_step_is_timed_after_some_that_are_not():
    steps, waits = [], []
    seconds = timed(lambda: steps.append(1), lambda: waits.append(1))
    assert len(steps) == len(waits) == NUM_WARM_UP_STEPS + NUM_TIMED_STEPS
    assert 0 <= seconds < 1


def test_what_is_timed_is_two_layers_of_an_8b_model():
    facts = parameter_counts(calibration_request(AMPERE))
    assert facts.num_quantized == 2 * 218_103_808  # 6,979,321,856 linear weights in 32 layers of Llama-3.1-8B
