"""What a request knows of recipe, base and device."""

from __future__ import annotations

import json

import pytest
import torch

from qlora_cli.errors import RecipeError
from qlora_cli.plan.fake_model import skeleton
from qlora_cli.plan.shape import Device, read_config, sketch_config
from qlora_cli.recipe.schema import ModelSection
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


def test_a_configuration_is_read_without_weights(tmp_path):
    config_of("llama").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert read_config(ModelSection(base_model=str(tmp_path))).hidden_size == 128


def test_a_base_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be loaded"):
        read_config(ModelSection(base_model=str(tmp_path / "nowhere")))


def test_a_configuration_that_contradicts_itself_is_refused(tmp_path):
    settings = {"model_type": "llama", "hidden_size": 96, "num_attention_heads": 5}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RecipeError, match="not a multiple of the number of attention heads"):
        read_config(ModelSection(base_model=str(tmp_path)))


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
