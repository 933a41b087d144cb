"""A base in integers in a plan: what loading holds, and what the cache and the merged model take, to the byte."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from qlora_cli.model.base import load_base
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.integer.making import integer_folder
from qlora_cli.plan.disk import disk_of
from qlora_cli.plan.parameter_counts import parameter_counts
from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.plan.trace.step import fake_step
from qlora_cli.recipe.schema import ModelSection
from tests.model.bases import save_toy
from tests.plan.bases import CPU, request_for

BASE = (MemoryKind.BASE_QUANTIZED, MemoryKind.QUANTIZATION_CONSTANTS, MemoryKind.BASE_16BIT)


def integers(bits, group_size, **settings):
    named = {"method": "int", "bits": bits, "group_size": group_size} | settings
    return {f"quantization__{key}": value for key, value in named.items()}


def planned_on(folder, **settings):
    config = AutoConfig.from_pretrained(folder)
    return request_for(config, CPU, model__base_model=str(folder), model__dtype="bfloat16", **settings)


def held(folder, request):
    """Bytes that a loaded base holds, by kind."""
    section = ModelSection(base_model=str(folder), dtype="bfloat16")
    model = load_base(section, request.recipe.quantization)
    found = dict.fromkeys(BASE, 0)
    for module in model.modules():
        is_int = isinstance(module, IntegerLinear)
        for name, tensor in (*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)):
            kind = BASE[0] if is_int and name == "codes" else BASE[1] if is_int and name != "bias" else BASE[2]
            found[kind] += tensor.untyped_storage().nbytes()
    return found


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("glm4_moe", integers(4, 32)),
        ("gemma3", integers(3, 64, skip_modules=("v_proj",))),
        ("llama4", integers(2, 64)),
    ],
)
def test_the_plan_is_what_the_loaded_base_holds(name, settings, tmp_path):
    folder = save_toy(name, tmp_path / name)
    request = planned_on(folder, lora__use_qalora=True, lora__target_modules=("o_proj",), **settings)
    step = fake_step(request).at(0).by_kind
    assert {kind: step.get(kind, 0) for kind in BASE} == held(folder, request)


def test_a_folder_in_integers_is_planned_as_it_is_stored(tmp_path, tiny_base, empty_cache):
    request = planned_on(tiny_base, **integers(4, 32, skip_modules=("v_proj",)))
    held(tiny_base, request)
    stored = integer_folder(request.recipe.model, request.recipe.quantization)
    tensors = load_file(stored / "model.safetensors")
    merged = {key: tensor.float() if key.endswith("offsets") else tensor for key, tensor in tensors.items()}
    save_file(merged, stored / "model.safetensors", metadata={"format": "pt"})
    on_stored = planned_on(stored, **integers(4, 32))
    step = fake_step(on_stored).at(0).by_kind
    assert {kind: step.get(kind, 0) for kind in BASE} == held(stored, on_stored)


@pytest.mark.parametrize("name", ["glm4_moe", "gemma3"])
@pytest.mark.parametrize(("bits", "group_size"), [(3, 32)])
def test_the_folder_in_the_cache_is_counted(name, bits, group_size, tmp_path, empty_cache):
    folder = save_toy(name, tmp_path / name)
    request = planned_on(folder, lora__use_qalora=True, **integers(bits, group_size))
    held(folder, request)
    made = integer_folder(request.recipe.model, request.recipe.quantization)
    tensors = {key: tensor for path in made.glob("*.safetensors") for key, tensor in load_file(path).items()}
    counts = parameter_counts(request)
    disk = disk_of(request.recipe, counts.trained, counts.num_base, counts.num_integers)
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))
    assert disk.integer_bytes - headers == sum(tensor.nbytes for tensor in tensors.values())
    offsets = sum(tensor.nbytes for key, tensor in tensors.items() if key.endswith("offsets"))
    assert disk.merged_bytes - disk.integer_bytes == offsets
    on_stored = planned_on(made, **integers(bits, group_size))
    assert disk_of(on_stored.recipe, [], 0, counts.num_integers).integer_bytes == 0
    assert json.loads((made / "config.json").read_text())["quantization_config"]["bits"] == bits
    assert counts.num_integers == counts.num_quantized > 0
    assert torch.cuda.is_available() is False
