"""A tensor without a gradient stops the run before anything is saved; experts that were given no token do not."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from qlora_cli.errors import RecipeError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import TrainOptions, train_recipe
from qlora_cli.train.step.reached import refuse_untouched
from tests.tiny_models import byte_tokenizer, tiny_llama

WITH_A_SPARE_LAYER = """
from torch import nn
from transformers import LlamaForCausalLM

class MyModel(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.spare_proj = nn.Linear(64, 64, bias=False)
        self.post_init()
"""


@pytest.fixture
def base_with_a_spare_layer(tmp_path):
    """A base with code of its own, whose forward pass leaves out a linear layer that it has."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer))
    for layer in model.model.layers:
        layer.mlp.spare_proj = nn.Linear(64, 64, bias=False)
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "mine.py").write_text(WITH_A_SPARE_LAYER)
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": "mine.MyModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_run_stops_before_it_saves_and_its_hint_leads_to_one_that_does_not(
    small_recipe, base_with_a_spare_layer, tmp_path
):
    model = {"base_model": str(base_with_a_spare_layer), "trust_remote_code": True}
    training = {"max_steps": 1, "gradient_accumulation_steps": 2}
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"4 of 32 trained tensors got no gradient in the first step") as caught:
        train_recipe(small_recipe(model=model, training=training), run, TrainOptions())
    problem = caught.value.problems[0]
    assert "layers.0.mlp.spare_proj.lora_A" in problem.text
    assert "\n" not in problem.text
    assert not list(run.checkpoints_path.iterdir())
    assert not run.adapter_path.exists()
    targets = re.search(r"lora\.target_modules=\[(.*)\]", problem.hint)[1].split(",")
    recipe = small_recipe(model=model, training=training, lora={"target_modules": targets})
    assert train_recipe(recipe, RunDirectory(tmp_path / "other"), TrainOptions()).is_finished


def test_what_is_trained_in_full_must_get_a_gradient_too(small_recipe, base_with_a_spare_layer, tmp_path):
    model = {"base_model": str(base_with_a_spare_layer), "trust_remote_code": True}
    lora = {"target_modules": ["q_proj"], "modules_to_save": ["layers.0.mlp.spare_proj"]}
    recipe = small_recipe(model=model, lora=lora, training={"max_steps": 1})
    with pytest.raises(RecipeError, match="1 of 5 trained tensors") as caught:
        train_recipe(recipe, RunDirectory(tmp_path / "run"), TrainOptions())
    assert "take model.layers.0.mlp.spare_proj out of lora.modules_to_save" in caught.value.problems[0].hint


class Mixture(nn.Module):
    """Two layers of four experts, each a module of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(4)) for _ in range(2))

    def forward(self, x, chosen):
        for layer, experts in zip(self.layers, chosen, strict=True):
            x = x + sum(layer[expert](x) for expert in experts)
        return x


def mixture_after(*passes):
    model = get_peft_model(Mixture(), LoraConfig(r=2, target_modules=r"layers\.\d\.\d"))
    for chosen in passes:
        model(torch.ones(1, 8), chosen).sum().backward()
    return model


def test_an_expert_that_no_token_was_sent_to_is_let_through():
    refuse_untouched(mixture_after([[0], [3]]), "runs/x")
    refuse_untouched(mixture_after([[0], [3]], [[1, 2], [0]]), "runs/x")


def test_a_layer_of_experts_that_no_pass_goes_through_is_not():
    model = mixture_after([[0, 1], []])
    with pytest.raises(RecipeError, match=r"8 of 16 trained tensors .*layers\.1\.0\.lora_A") as caught:
        refuse_untouched(model, "runs/x")
    assert caught.value.problems[0].place == "runs/x"
    assert "name the layers to adapt in full" in caught.value.problems[0].hint
