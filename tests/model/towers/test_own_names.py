"""Names on the class that was loaded and on the base's own are one-to-one, and both exist."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from qlora_cli.model.base import load_base
from qlora_cli.model.towers.own_names import (
    adapter_key_mapping,
    note_own_class,
    own_class,
    with_loaded_names,
    with_own_names,
)
from qlora_cli.recipe.schema import ModelSection
from tests.model.bases import MULTIMODAL

TWO_CLASSES = ["qwen3_5_vl", "qwen3_5_moe_vl", "llama4"]


def load(folder):
    return load_base(ModelSection(base_model=str(folder)), None)


@pytest.mark.parametrize("name", TWO_CLASSES)
def test_each_parameter_is_the_same_one_on_the_own_class(toy, name):
    base = load(toy(name))
    own = own_class(base)
    whole = hf.AutoModelForMultimodalLM.from_pretrained(toy(name), dtype=torch.float32).state_dict()
    for parameter_name, parameter in base.named_parameters():
        assert torch.equal(whole[own.name(parameter_name)], parameter)
        assert own.loaded_name(own.name(parameter_name)) == own.loaded_name(parameter_name) == parameter_name
        assert own.name(parameter_name).endswith(own.name_below_parts(parameter_name))


@pytest.mark.parametrize("name", sorted(set(MULTIMODAL) - set(TWO_CLASSES)))
def test_a_base_that_was_loaded_whole_keeps_its_names(toy, name):
    base = load(toy(name))
    tensors = {"base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(1)}
    assert own_class(base) is None
    assert adapter_key_mapping(base) is None
    assert with_own_names(base, tensors) is with_loaded_names(base, tensors) is tensors


def test_mllama_has_two_classes_too():
    text = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 128, "pad_token_id": 0}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1]}
    config = hf.MllamaConfig(text_config=text)
    with torch.device("meta"):
        base = hf.AutoModelForCausalLM.from_config(config)
    note_own_class(base, config)
    assert own_class(base).name("model.layers.0.mlp") == "model.language_model.layers.0.mlp"
    assert own_class(base).name("lm_head.weight") == "lm_head.weight"
