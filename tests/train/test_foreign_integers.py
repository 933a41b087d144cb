"""Bases in integers of others: trained, resumed to the same bytes, merged, and handed to vLLM as they are."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qlora_cli.deploy.integers import is_in_integers
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tuned import find_tuned, load_tuned
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.serve.served_base import served_base
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.model.foreign_bases import gptq_base, w4a16_base
from tests.train.integer_recipe import integer_recipe

IDS = torch.arange(1, 60)[None]
pytestmark = pytest.mark.usefixtures("empty_cache")


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def test_w4a16_is_trained_resumed_merged_and_served_as_it_is(tiny_base, chat_data, tmp_path):
    base = tmp_path / "base"
    w4a16_base(tiny_base, base)
    straight, resumed = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "resumed")
    recipe = integer_recipe(base, chat_data)
    train_recipe(recipe, straight, TrainOptions())
    train_recipe(recipe, resumed, TrainOptions(stop_after=2))
    train_recipe(recipe, resumed, TrainOptions(resume=True))
    adapters = [run.adapter_path / "adapter_model.safetensors" for run in (straight, resumed)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert load_recipe(straight.recipe_path).quantization.kind == "w4a16"

    source = find_tuned(straight.path)
    served = served_base(source)
    assert served.folder == base
    assert served.is_there
    assert served.dtype == "bfloat16"  # the kernels of vLLM for 4-bit integers take 16 bits alone

    with pytest.raises(ArgumentError, match="holds its weights in W4A16 in groups of 32 only"):
        merge_run(source, tmp_path / "original", MergeOptions(onto="original"))
    merged = merge_run(source, None, MergeOptions(dtype="float32"))
    assert "quantization_config" not in json.loads((merged.path / "config.json").read_text())
    assert "W4A16" in merged.onto_in_words
    trained, plain = load_tuned(source).model, AutoModelForCausalLM.from_pretrained(merged.path)
    assert (logits(trained) - logits(plain)).abs().max() < 1e-4


def test_qa_lora_on_gptq_keeps_the_codes_of_the_base(tiny_base, chat_data, tmp_path):
    gptq_base(tiny_base, tmp_path / "base", is_symmetric=False)
    run = RunDirectory(tmp_path / "run")
    train_recipe(integer_recipe(tmp_path / "base", chat_data, use_qalora=True, lora_dropout=0.0), run, TrainOptions())
    assert load_recipe(run.recipe_path).quantization.kind == "int4"
    merged = merge_run(run.path, None, MergeOptions())
    assert merged.agreement.max_logit_difference < 1e-4
    assert is_in_integers(merged.path)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", merged.path))
    name = "model.layers.0.mlp.up_proj"
    assert ours[f"{name}.codes"].view(torch.int32).equal(theirs[f"{name}.qweight"].T)
