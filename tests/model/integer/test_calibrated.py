"""A small trained Llama rounded block by block."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_cli.model.base import load_base
from qlora_cli.model.integer.calibrated import round_by_blocks, write_calibrated_base
from qlora_cli.model.integer.codes import unpack
from qlora_cli.model.integer.gptq import feedback_factor, round_with_feedback
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.recipe.schema import ModelSection, QuantizationSection

INT3 = QuantizationSection(method="int", bits=3, calibration="rows")
TICKETS = Path(__file__).parents[3] / "recipes" / "data" / "tickets_train.jsonl"


@pytest.fixture(scope="module")
def rows(trained_base):
    """Rows of 64 tokens of what the base was trained on, one a batch."""
    tokens = AutoTokenizer.from_pretrained(trained_base)(TICKETS.read_text("utf-8")[:12_000]).input_ids
    return [torch.tensor(tokens[start : start + 64])[None] for start in range(0, 40 * 64, 64)]


def batches(rows):
    return [{"input_ids": row, "labels": row} for row in rows]


def plain(base):
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@torch.no_grad()
def kl(model, reference, rows):
    """Mean KL to the plain base, in nats a token."""
    logs = [[m(input_ids=row).logits.log_softmax(-1) for row in rows] for m in (reference, model)]
    return sum((p.exp() * (p - q)).sum(-1).mean().item() for p, q in zip(*logs, strict=True)) / len(rows)


def test_it_is_nearer_to_the_base_than_rounding_to_the_nearest_and_lies_where_it_is_told(trained_base, rows, tmp_path):
    model = ModelSection(base_model=str(trained_base), dtype="float32")
    out = tmp_path / "integers"
    write_calibrated_base(model, INT3, batches(rows[:24]), out)
    calibrated = load_base(model, INT3, source=str(out)).eval()
    nearest = load_base(model, INT3.model_copy(update={"calibration": "none"})).eval()
    reference = plain(trained_base)
    assert kl(calibrated, reference, rows[24:]) < 0.8 * kl(nearest, reference, rows[24:])
    config = json.loads((out / "config.json").read_text("utf-8"))["quantization_config"]
    assert (config["bits"], config["group_size"], config["calibration"]) == (3, 32, "rows")
    stored, plain_tensors = load_file(out / "model.safetensors"), load_file(trained_base / "model.safetensors")
    assert stored["model.norm.weight"].equal(plain_tensors["model.norm.weight"])
    assert stored["model.layers.1.mlp.down_proj.codes"].dtype == torch.uint8


def test_a_block_gets_the_inputs_that_rounded_blocks_give(trained_base, rows):
    model = plain(trained_base)
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear and name != "lm_head"]
    round_by_blocks(model, names, INT3, batches(rows[:4]))
    assert {type(model.get_submodule(name)) for name in names} == {IntegerLinear}
    half_rounded = plain(trained_base)
    half_rounded.model.layers[0] = model.model.layers[0]
    moments = {}

    def add(layer, inputs):
        x = inputs[0].flatten(end_dim=-2)
        moments[layer] = moments.get(layer, 0) + x.T @ x

    block = half_rounded.model.layers[1]
    layers = [module for module in block.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.register_forward_pre_hook(add)
    with torch.no_grad():
        for row in rows[:4]:
            half_rounded(input_ids=row)
    found = [module for module in model.model.layers[1].modules() if isinstance(module, IntegerLinear)]
    assert len(layers) == len(found) == 7
    for layer, rounded in zip(layers, found, strict=True):
        codes, scales, offsets = round_with_feedback(layer.weight.data, feedback_factor(moments[layer], ""), 3, 32)
        assert unpack(rounded.codes, 3).equal(codes)
        assert rounded.scales.equal(scales)
        assert rounded.offsets.equal(offsets)


def test_what_text_does_not_reach_is_rounded_to_the_nearest(trained_base, rows):
    model = plain(trained_base)
    model.tower = nn.Sequential(nn.Linear(64, 32))
    weight = model.tower[0].weight.data.clone()
    round_by_blocks(model, ["tower.0", "model.layers.0.self_attn.q_proj"], INT3, batches(rows[:1]))
    step = (weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)) / 7
    assert (model.tower[0].dequantized(torch.float32) - weight).abs().le(step).all()
    assert isinstance(model.model.layers[0].self_attn.q_proj, IntegerLinear)
    assert type(model.model.layers[1].self_attn.q_proj) is nn.Linear


def test_a_whole_row_is_a_group_too(trained_base, rows):
    model = plain(trained_base)
    name = "model.layers.0.mlp.down_proj"
    weight = model.get_submodule(name).weight.data.clone()
    round_by_blocks(model, [name], INT3.model_copy(update={"group_size": -1}), batches(rows[:2]))
    layer = model.get_submodule(name)
    assert layer.scales.shape == (len(weight), 1)
    assert (layer.dequantized(torch.float32) - weight).norm() < 0.5 * weight.norm()


def test_nothing_is_left_of_a_base_that_could_not_be_rounded(trained_base, rows, tmp_path):
    base = shutil.copytree(trained_base, tmp_path / "base")
    out = tmp_path / "run" / "integers"
    with pytest.raises(ValueError, match="needs rows"):
        write_calibrated_base(ModelSection(base_model=str(base)), INT3, [], out)
    assert not out.parent.exists()
