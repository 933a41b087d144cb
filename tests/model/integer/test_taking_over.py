"""Bases in integers of others, loaded as ours: the same numbers as in their files, and nothing rounded."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_cli.cache_folder import cache_folder
from qlora_cli.errors import RecipeError, ResourceError
from qlora_cli.model.base import load_base
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.integer.taking_over import layout_of
from qlora_cli.model.prequantized import recipe_on
from qlora_cli.plan.trace.fake_model import meta_model
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.recipe.schema import ModelSection, QuantizationSection, Recipe
from tests.model.foreign_bases import gptq_base, w4a16_base

pytestmark = pytest.mark.usefixtures("empty_cache")
IDS = torch.arange(48).reshape(2, 24)
HALF, FULL = torch.float16, torch.float32


def load(folder, quantization=None, **model):
    return load_base(ModelSection(base_model=str(folder), dtype="float32", **model), quantization)


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, IntegerLinear)}


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def check_weights(model, plain):
    found = layers(model)
    assert len(found) == sum(".layers." in key and tensor.dim() == 2 for key, tensor in plain.items())
    for name, layer in found.items():
        assert torch.equal(layer.dequantized(FULL), plain[f"{name}.weight"]), name


@pytest.mark.parametrize("group_size", [32, None], ids=["groups", "rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, HALF])
def test_w4a16_has_the_weights_of_its_files_and_the_logits_of_transformers(tiny_base, tmp_path, group_size, dtype):
    plain = w4a16_base(tiny_base, tmp_path / "base", group_size=group_size, dtype=dtype)
    model = load(tmp_path / "base")
    check_weights(model, plain)
    assert {(layer.scales.dtype, layer.offsets.dtype) for layer in layers(model).values()} == {(HALF, HALF)}
    pytest.importorskip("compressed_tensors")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=FULL)
    assert (logits(model) - logits(theirs)).abs().max() < 1e-5


def test_scales_that_float16_does_not_hold_stay_in_float32(tiny_base, tmp_path):
    plain = w4a16_base(tiny_base, tmp_path / "base", dtype=FULL)
    model = load(tmp_path / "base")
    for name, layer in layers(model).items():
        assert (layer.scales.dtype, layer.offsets.dtype) == (FULL, FULL)
        weight = plain[f"{name}.weight"]
        assert (layer.dequantized(FULL) - weight).abs().max() <= 2e-7 * weight.abs().max()


@pytest.mark.parametrize(
    ("settings", "dtypes"),
    [
        ({"bits": 4}, (HALF, HALF)),
        ({"bits": 4, "group_size": -1}, (HALF, HALF)),
        ({"bits": 3, "layout": "gptq_v2"}, (HALF, HALF)),
        ({"bits": 2}, (HALF, HALF)),
        ({"bits": 4, "layout": "gptq_v2", "is_symmetric": False}, (HALF, FULL)),
        ({"bits": 3, "is_symmetric": False}, (HALF, FULL)),
    ],
    ids=["4", "4 rows", "3 v2", "2", "4 asymmetric v2", "3 asymmetric"],
)
def test_gptq_has_the_weights_of_its_files(tiny_base, tmp_path, settings, dtypes):
    plain = gptq_base(tiny_base, tmp_path / "base", **settings)
    model = load(tmp_path / "base")
    check_weights(model, plain)
    found = {(layer.scales.dtype, layer.offsets.dtype) for layer in layers(model).values()}
    assert found == {dtypes}


@pytest.mark.parametrize("layouts", [("gptq_v2", "gptq"), ("gptq", "gptq_v2")], ids=" said to be ".join)
def test_symmetric_weights_are_read_right_whatever_format_config_names(tiny_base, tmp_path, layouts):
    """Released so: Qwen3.5-27B-GPTQ-Int4 holds zero points of 8 and says `gptq` (vllm#38966)."""
    written, named = layouts
    plain = gptq_base(tiny_base, tmp_path / "base", layout=written)
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["checkpoint_format"] = named
    path.write_text(json.dumps(config))
    check_weights(load(tmp_path / "base"), plain)


def test_zero_points_that_symmetric_weights_do_not_have_are_refused(tiny_base, tmp_path):
    gptq_base(tiny_base, tmp_path / "base", zero=5)
    assert "holds other zero points than 8 or 7" in refusal(tmp_path / "base").text


def test_the_folder_is_written_once_and_shared(tiny_base, tmp_path, empty_cache):
    w4a16_base(tiny_base, tmp_path / "base")
    load(tmp_path / "base", QuantizationSection(method="w4a16"))
    [folder] = cache_folder("bases").iterdir()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    load(tmp_path / "base")
    assert [*cache_folder("bases").iterdir()] == [folder]
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "qlora_int"


def test_dequantized_it_is_plain_as_before(tiny_base, tmp_path):
    pytest.importorskip("compressed_tensors")
    w4a16_base(tiny_base, tmp_path / "base")
    model = load(tmp_path / "base", dequantize=True)
    assert not layers(model)
    # transformers computes the weights in the bfloat16 of the scales
    assert (logits(model) - logits(load(tmp_path / "base"))).abs().max() < 0.05


@pytest.mark.parametrize("make", [w4a16_base, gptq_base])
def test_a_disk_that_lacks_one_byte_is_refused_before_anything_is_written(tiny_base, tmp_path, make, monkeypatch):
    make(tiny_base, tmp_path / "base")
    load(tmp_path / "base")
    [folder] = cache_folder("bases").iterdir()
    needed = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    shutil.rmtree(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(ResourceError, match="the disk is full: the base in integers takes") as caught:
        load(tmp_path / "base")
    assert "QLORA_CACHE=FOLDER" in caught.value.problems[0].hint
    assert not folder.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert layers(load(tmp_path / "base"))


def refusal(folder):
    with pytest.raises(RecipeError) as caught:
        load(folder)
    [problem] = caught.value.problems
    return problem


def test_columns_that_were_sorted_are_refused_though_config_says_nothing(tiny_base, tmp_path):
    gptq_base(tiny_base, tmp_path / "base", order=lambda num_inputs: torch.arange(num_inputs) % 2)
    problem = refusal(tmp_path / "base")
    assert "are sorted (g_idx)" in problem.text
    assert "original" in problem.hint


def test_a_zero_point_that_libraries_read_in_two_ways_is_refused(tiny_base, tmp_path):
    gptq_base(tiny_base, tmp_path / "base", is_symmetric=False, zero=0)
    assert "which some libraries read as a zero point of 16 and some as one of 0" in refusal(tmp_path / "base").text
    gptq_base(tiny_base, tmp_path / "second", is_symmetric=False, zero=0, layout="gptq_v2")
    assert layers(load(tmp_path / "second"))


@pytest.mark.parametrize("part", ["weight_zero_point", "weight_g_idx"])
def test_parts_that_config_does_not_tell_of_are_refused(tiny_base, tmp_path, part):
    w4a16_base(tiny_base, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    name = f"model.layers.0.mlp.up_proj.{part}"
    save_file(tensors | {name: torch.zeros(1, dtype=torch.int32)}, path, metadata={"format": "pt"})
    problem = refusal(tmp_path / "base")
    assert name in problem.text
    assert problem.hint == "--set model.dequantize=true"


def test_a_layer_that_the_model_does_not_have_is_refused(tiny_base, tmp_path):
    w4a16_base(tiny_base, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    beside = {
        key.replace("up_proj", "up_proj.3"): tensor.clone() for key, tensor in tensors.items() if "0.mlp.up_proj" in key
    }
    save_file(tensors | beside, path, metadata={"format": "pt"})
    assert "'model.layers.0.mlp.up_proj.3.weight' is stored in W4A16" in refusal(tmp_path / "base").text


@pytest.mark.parametrize("kind", ["w4a16", "float32 scales", "gptq"])
def test_a_plan_knows_layers_and_types_beforehand(tiny_base, tmp_path, kind):
    if kind == "gptq":
        gptq_base(tiny_base, tmp_path / "base", layout="gptq_v2", is_symmetric=False)
    else:
        w4a16_base(tiny_base, tmp_path / "base", dtype=torch.float32 if "float32" in kind else torch.bfloat16)
    model = ModelSection(base_model=str(tmp_path / "base"), dtype="float32")
    config = AutoConfig.from_pretrained(tmp_path / "base")
    recipe = Recipe.model_validate(
        {"name": "plan", "model": model.model_dump(), "data": {"train": "rows.jsonl"}, "lora": {"r": 4}}
    )
    loaded = load(tmp_path / "base")
    planned = meta_model(PlanRequest(recipe_on(recipe, config), config)).get_base_model()
    buffers = {name.replace("base_layer.", ""): each for name, each in planned.named_buffers()}
    for name, layer in layers(loaded).items():
        for part in ("codes", "scales", "offsets"):
            real = getattr(layer, part)
            assert (buffers[f"{name}.{part}"].dtype, buffers[f"{name}.{part}"].shape) == (real.dtype, real.shape)
    if kind == "float32 scales":  # which config.json does not tell
        return
    elsewhere = model.model_copy(update={"base_model": "nobody/has-this"})
    assert layout_of(elsewhere, config) == layout_of(model, config)
