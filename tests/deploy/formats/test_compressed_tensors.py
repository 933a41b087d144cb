"""What is written, against the folder that it was written from, by arithmetic of the test's own."""

import json
import re

import pytest
import torch
from safetensors import safe_open

from qlora_cli.deploy.formats.compressed_tensors import FORMAT
from qlora_cli.errors import ArgumentError
from tests.deploy.formats.jobs import written
from tests.model.bases import save_toy


def tensors_of(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return found


def read_back(tensors, name, bits):
    if bits == 8 and f"{name}.weight" in tensors:
        codes = tensors[f"{name}.weight"].float()
    else:
        words = tensors[f"{name}.weight_packed"].to(torch.int64) & 0xFFFFFFFF
        codes = torch.stack([(words >> place) & (2**bits - 1) for place in range(0, 32, bits)], -1)
        codes = codes.flatten(1).float() - 2 ** (bits - 1)
    scales = tensors[f"{name}.weight_scale"].float()
    steps = scales.repeat_interleave(codes.shape[1] // scales.shape[1], 1)
    return codes * steps, steps


QUANTS = [("w4a16", 4, 32), ("w4a16", 4, 64), ("w8a16", 8, None), ("w8a16", 8, 32), ("w8a8", 8, None)]


@pytest.mark.parametrize(("quant", "bits", "group"), QUANTS)
def test_every_weight_is_there_and_near_what_it_was(llama_folder, tmp_path, quant, bits, group):
    out = written(FORMAT, llama_folder, tmp_path / "out", quant=quant, group_size=group)
    before, after = tensors_of(llama_folder), tensors_of(out)
    quantized = {key.removesuffix(".weight_scale") for key in after if key.endswith(".weight_scale")}
    assert len(quantized) == 14  # 7 linear layers in each of 2 blocks
    for key, value in before.items():
        name = key.removesuffix(".weight")
        if name not in quantized:
            assert torch.equal(after[key], value)
            continue
        weight, steps = read_back(after, name, bits)
        assert (weight - value.float()).norm() < (0.12 if bits == 4 else 0.01) * value.float().norm()
        assert (weight - value.float()).abs().le(steps * 4).all()


@pytest.mark.parametrize(
    "name", ["qwen3_5_vl", "gemma3", "qwen3_moe", "mixtral", "mistral3", "gemma4_moe", "qwen3_5_moe_vl"]
)
def test_of_multimodal_and_expert_models_no_tensor_is_lost_and_the_rest_is_named(name, tmp_path):
    base = save_toy(name, tmp_path / "base")
    out = written(FORMAT, base, tmp_path / "out", quant="w4a16", group_size=32)
    before, after = tensors_of(base), tensors_of(out)
    quantized = {key.removesuffix(".weight_scale") for key in after if key.endswith(".weight_scale")}
    assert {key for key in before if key.removesuffix(".weight") not in quantized} <= set(after)
    assert quantized
    assert not [key for key in quantized if re.search(r"vision|visual|router|gate$|lm_head|embed|experts\.", key)]
    assert all(torch.equal(after[key], value) for key, value in before.items() if key in after)
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    patterns = [each.removeprefix("re:") if each.startswith("re:") else re.escape(each) for each in ignored]
    for key, value in before.items():
        name = key.removesuffix(".weight")
        if value.dim() == 2 and key.endswith(".weight") and name not in quantized and "embed" not in key:
            assert any(re.match(f"{pattern}$", name) for pattern in patterns), key
    assert not [name for name in quantized for pattern in patterns if re.match(f"{pattern}$", name)]
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(after)


def test_layers_of_another_class_are_refused_with_the_way_on(gpt2_folder, tmp_path):
    with pytest.raises(ArgumentError, match=r"Conv1D[\s\S]*--format hf"):
        written(FORMAT, gpt2_folder, tmp_path / "out", group_size=32)


def test_columns_that_the_group_does_not_divide_are_refused_by_name(llama_folder, tmp_path):
    out = written(FORMAT, llama_folder, tmp_path / "some")  # groups of 128: only down_proj has as many columns
    assert {key.split(".")[-2] for key in tensors_of(out) if key.endswith("_scale")} == {"down_proj"}


@pytest.mark.parametrize(("quant", "group"), [("w4a16", 48), ("w8a8", 128)])
def test_a_group_that_the_scheme_does_not_have_is_refused(llama_folder, tmp_path, quant, group):
    with pytest.raises(ArgumentError, match=f"--group-size {group} does not go with {quant}"):
        written(FORMAT, llama_folder, tmp_path / "out", quant=quant, group_size=group)
