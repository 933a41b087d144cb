"""The folder in integers that is made of a base: whole or absent, the same bytes each time, and what loads of it."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qlora_cli.cache_folder import cache_folder
from qlora_cli.errors import ArgumentError, RecipeError, ResourceError
from qlora_cli.model.base import load_base
from qlora_cli.model.integer import making
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.integer.making import integer_folder, stored_base
from qlora_cli.model.towers.auto_class import auto_class
from qlora_cli.model.towers.text_reach import text_reach
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from tests.model.bases import save_toy
from tests.model.packed_bases import packed_base
from tests.tiny_models import byte_tokenizer, tiny_llama

SKIPPED = "v_proj"
INTEGERS = QuantizationSection(method="int", bits=4, group_size=32)

OTHERS = ("mistral3", "qwen2_5_vl", "qwen3_moe", "gpt_oss", "glm4_moe")

OWN_CODE = """
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

class MyConfig(LlamaConfig):
    model_type = "mine"

class MyModel(LlamaForCausalLM):
    config_class = MyConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.spare_proj = nn.Linear(64, 64, bias=False)
        self.post_init()
"""


def section(folder, **settings):
    return ModelSection.model_validate({"base_model": str(folder), "dtype": "float32"} | settings)


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, IntegerLinear)}


def assert_rounded(model, plain, levels=15):
    """Each layer in integers is the plain one within a step of its widest group."""
    for name, layer in layers(model).items():
        weight = plain.get_submodule(name).weight.float()
        assert (layer.dequantized(torch.float32) - weight).abs().max() <= (weight.amax() - weight.amin()) / levels


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "name", ["qwen3_5_moe_vl", "gemma3", "mixtral", "gemma4_moe", "qwen3_5_vl", "gemma4", "llama4", *OTHERS]
)
def test_of_a_base_of_many_parts_the_layers_that_text_goes_through_become_integers(name, tmp_path, empty_cache):
    folder = section(save_toy(name, tmp_path / name), attn_implementation="eager")
    skipping = INTEGERS.model_copy(update={"skip_modules": (SKIPPED,)})
    model, plain = load_base(folder, skipping), load_base(folder, None)
    reach = text_reach(auto_class(plain.config), plain.config)
    reached = (
        {name for name, module in plain.named_modules() if type(module) is nn.Linear}
        if reach is None
        else reach.reached
    )
    kept = ("lm_head", SKIPPED, "gate", "router.proj")
    assert set(layers(model)) == {name for name in reached if not name.endswith(kept)} != set()
    assert_rounded(model, plain)
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, plain.get_parameter(name)), name


@pytest.mark.parametrize("stored", ["fp8", "fp8 experts"])
def test_a_base_in_fp8_is_rounded_from_the_numbers_that_it_stands_for(stored, tmp_path, empty_cache):
    packed, _ = packed_base(stored, tmp_path)
    folder = section(packed, dequantize=True)
    model, plain = load_base(folder, INTEGERS), load_base(folder, None)
    assert layers(model)
    assert_rounded(model, plain)


def test_several_files_stay_several_and_name_what_they_hold(tmp_path, empty_cache):
    folder = section(save_toy("qwen3_moe", tmp_path / "base"))
    made = integer_folder(folder, INTEGERS)
    assert stored_base(folder, INTEGERS).base_model == str(made)
    index = json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(path.name for path in made.glob("*.safetensors"))
    assert files == sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert {name: file for file in files for name in load_file(made / file)} == index


def test_the_code_of_a_base_is_taken_along_if_it_is_trusted(tmp_path, empty_cache):
    base = tmp_path / "base"
    model = tiny_llama(len(byte_tokenizer()))
    for layer in model.model.layers:
        layer.mlp.spare_proj = nn.Linear(64, 64, bias=False)
    model.save_pretrained(base)
    (base / "mine.py").write_text(OWN_CODE)
    config = json.loads((base / "config.json").read_text()) | {"model_type": "mine", "architectures": ["MyModel"]}
    config["auto_map"] = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    (base / "config.json").write_text(json.dumps(config))
    folder = section(base, trust_remote_code=True)
    assert "model.layers.0.mlp.spare_proj" in layers(load_base(folder, INTEGERS))
    with pytest.raises(RecipeError, match="trust_remote_code"):
        load_base(section(base), INTEGERS)
    config["auto_map"]["AutoConfig"] = "other/repository--mine.MyConfig"
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="does not reach to 'other/repository'"):
        load_base(folder, INTEGERS.model_copy(update={"bits": 3}))


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_stops_half_way_leaves_nothing(fault, tiny_base, empty_cache, monkeypatch):
    real, calls = making.round_to_nearest, []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise fault
        return real(*arguments)

    monkeypatch.setattr(making, "round_to_nearest", stops)
    with pytest.raises(KeyboardInterrupt if fault is KeyboardInterrupt else ResourceError):
        load_base(section(tiny_base), INTEGERS)
    assert list(cache_folder("bases").iterdir()) == []
    assert layers(load_base(section(tiny_base), INTEGERS))


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(tiny_base, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(ArgumentError) as caught:
        load_base(section(tiny_base), INTEGERS)
    [problem] = caught.value.problems
    assert problem.place.startswith(str(tmp_path / "file"))
    assert "QLORA_CACHE=FOLDER" in problem.hint


def test_inputs_that_are_no_multiple_of_the_group_are_named_with_what_would_do(tmp_path, empty_cache):
    base = tmp_path / "base"
    config = tiny_llama(64).config
    config.intermediate_size = 96
    type(tiny_llama(64))(config).save_pretrained(base)
    large = INTEGERS.model_copy(update={"group_size": 64})
    with pytest.raises(RecipeError) as caught:
        load_base(section(base), large)
    [problem] = caught.value.problems
    assert problem.text == (
        "quantization.group_size: the 96 inputs of 'model.layers.0.mlp.down_proj' cannot be divided into groups of 64"
    )
    assert "--set quantization.group_size=32, or --set quantization.skip_modules=[down_proj]" in problem.hint
    assert layers(load_base(section(base), large.model_copy(update={"skip_modules": ("down_proj",)})))


def test_a_module_to_skip_that_is_not_there_is_named(tiny_base, empty_cache):
    with pytest.raises(RecipeError, match="has no module named 'w_proj'") as caught:
        load_base(section(tiny_base), INTEGERS.model_copy(update={"skip_modules": ("w_proj",)}))
    assert "down_proj, gate_proj" in caught.value.problems[0].hint
    assert not list(cache_folder("bases").glob("*"))


def test_pickled_weights_are_refused_in_one_line(tmp_path, empty_cache):
    model = tiny_llama(64)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RecipeError) as caught:
        load_base(section(tmp_path, allow_pickle=True), INTEGERS)
    [problem] = caught.value.problems
    assert "needs safetensors" in problem.text
    assert "--set quantization.method=bitsandbytes" in problem.hint


def test_a_folder_that_lost_a_file_is_made_again(tiny_base, empty_cache):
    made = integer_folder(section(tiny_base), INTEGERS)
    stored_base(section(tiny_base), INTEGERS)
    weights = (made / "model.safetensors").read_bytes()
    (made / "model.safetensors").unlink()
    assert layers(load_base(section(tiny_base), INTEGERS))
    assert (made / "model.safetensors").read_bytes() == weights


def test_a_disk_without_room_is_refused_before_anything_is_written(tiny_base, empty_cache, monkeypatch):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"the base in integers takes .* kB, and 1.0 kB are free") as caught:
        load_base(section(tiny_base), INTEGERS)
    assert "QLORA_CACHE=FOLDER" in caught.value.problems[0].hint
    assert list(cache_folder("bases").iterdir()) == []
