"""What a request knows of recipe, base and device."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.errors import RecipeError
from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.sketch import sketch_config
from qlora_cli.plan.trace.fake_model import skeleton
from tests.plan.bases import CPU, config_of, request_for


@pytest.mark.parametrize(
    ("device", "name", "dtype"),
    [
        (CPU, "auto", torch.float32),
        (Device("cuda", (8, 6)), "auto", torch.bfloat16),
        (Device("cuda", (7, 5)), "auto", torch.float16),
        (Device("cuda", (8, 6)), "float16", torch.float16),
    ],
)
def test_auto_is_what_the_device_computes_in(device, name, dtype):
    assert request_for(config_of("llama"), device, model__dtype=name).dtype is dtype


def test_adapters_are_cast_where_they_are_float32_and_the_model_is_not():
    config, device = config_of("llama"), Device("cuda", (8, 0))
    assert request_for(config, device).autocast_dtype is torch.bfloat16
    assert request_for(config, device, lora__autocast_adapter_dtype=False).autocast_dtype is None
    assert request_for(config, CPU).autocast_dtype is None


def test_a_changed_request_leaves_the_first_as_it_was():
    request = request_for(config_of("llama"), lora__r=16)
    changed = request.changed({"lora.r": 64, "data.max_length": 128})
    assert (changed.recipe.lora.r, changed.recipe.data.max_length) == (64, 128)
    assert request.recipe.lora.r == 16


@pytest.mark.parametrize("key", ["lora.rank", "lorra.r", "name"])
def test_an_unknown_key_is_refused(key):
    with pytest.raises(ValueError, match="no key"):
        request_for(config_of("llama")).changed({key: 1})


@pytest.mark.parametrize(
    ("num_params", "hidden", "layers"),
    [(1_000_000_000, 2048, 16), (13_000_000_000, 5120, 40), (70_000_000_000, 8192, 80)],
)
def test_a_sketch_has_the_parameters_that_were_asked_for(num_params, hidden, layers):
    config = sketch_config(num_params, hidden_size=hidden, num_layers=layers)
    assert skeleton(request_for(config)).num_parameters() == pytest.approx(num_params, rel=0.01)


def test_a_sketch_too_small_for_its_width_is_refused():
    with pytest.raises(RecipeError, match="--params 100,000,000 is less"):
        sketch_config(100_000_000, hidden_size=8192, num_layers=80)


def test_a_sketch_of_odd_width_is_refused_with_a_width_that_works():
    with pytest.raises(RecipeError) as caught:
        sketch_config(10**9, hidden_size=2000, num_layers=16)
    assert "--hidden 2048" in str(caught.value)
