"""The layers that text goes through, held against those that get a gradient from a real row of text."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from qlora_cli.model.towers.auto_class import own_auto_class
from qlora_cli.model.towers.text_reach import text_reach, untouched_pattern
from tests.model.bases import MULTIMODAL, TEXT_ONLY


def layers_with_gradient(model):
    """Linear layers whose weight a row of text gives a gradient."""
    model.float().train()
    rows = torch.arange(3, 43).view(2, 20)
    types = {"token_type_ids": torch.zeros_like(rows)} if "gemma3" in model.config.model_type else {}
    model(input_ids=rows, labels=rows, **types).loss.backward()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name for name, module in linear.items() if module.weight.grad is not None}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_layers_found_without_weights_are_those_that_get_a_gradient(name):
    torch.manual_seed(0)
    model = MULTIMODAL[name]()
    reach = text_reach(own_auto_class(model.config), model.config)
    trained = layers_with_gradient(model)
    assert reach.reached == {name for name in trained if not name.endswith("feed_forward.router")}
    assert reach.unreached
    assert reach.modules == {name for name, _ in model.named_modules()}


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_a_language_model_is_not_looked_into(name):
    config = TEXT_ONLY[name]().config
    assert text_reach(own_auto_class(config), config) is None


def test_code_that_does_not_run_without_numbers_is_judged_by_its_decoder(monkeypatch):
    config = MULTIMODAL["mistral3"]().config
    expected = text_reach(own_auto_class(config), config)
    config.image_token_index = 1  # another one, of which nothing is kept
    monkeypatch.setattr(
        hf.Mistral3ForConditionalGeneration, "forward", lambda self, input_ids, **_: input_ids.sum().item()
    )
    assert text_reach(own_auto_class(config), config) == expected


def test_the_same_base_is_looked_into_once(monkeypatch):
    config = MULTIMODAL["gemma3"]().config
    first = text_reach(own_auto_class(config), config)
    monkeypatch.setattr("qlora_cli.model.towers.text_reach.bare_skeleton", None)
    again = hf.Gemma3Config.from_dict(config.to_dict())
    assert text_reach(own_auto_class(again), again) is first


def test_a_pattern_matches_whole_branches_and_nothing_that_is_reached():
    reached = {"model.text.layers.0.q_proj", "model.text.layers.1.q_proj", "lm_head"}
    unreached = {"model.text.layers.1.k_proj", "model.tower.0.q_proj", "model.tower.1.q_proj", "align"}
    pattern = untouched_pattern(unreached, reached)
    assert pattern == r"(.*\.)?(align|model\.text\.layers\.1\.k_proj|model\.tower)(\..*)?"
