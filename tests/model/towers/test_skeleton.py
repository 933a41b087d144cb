"""A skeleton has no memory behind it, and leaves the configuration as it was."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
import transformers as hf

from qlora_cli.model.base import load_base
from qlora_cli.model.towers.auto_class import auto_class
from qlora_cli.model.towers.skeleton import bare_skeleton, kept_modules
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from tests.model.bases import MULTIMODAL, TEXT_ONLY


def test_a_skeleton_is_on_the_meta_device_alone():
    config = hf.LlamaConfig(num_hidden_layers=1)
    before = config.to_dict()
    skeleton = bare_skeleton(hf.AutoModelForCausalLM, config)
    assert {tensor.device.type for tensor in (*skeleton.parameters(), *skeleton.buffers())} == {"meta"}
    assert not skeleton.training
    assert config.to_dict() == before


@pytest.mark.parametrize("skipped", [(), ("o_proj",)], ids=["none skipped", "some skipped"])
@pytest.mark.parametrize("name", [*MULTIMODAL, *TEXT_ONLY])
def test_what_loading_leaves_unquantized_is_known_beforehand(toy, name, skipped):
    config = hf.AutoConfig.from_pretrained(toy(name))
    kept = {*kept_modules(bare_skeleton(auto_class(config), config)), *skipped}
    base = load_base(
        ModelSection(base_model=str(toy(name)), attn_implementation="eager"), QuantizationSection(skip_modules=skipped)
    )
    plain = {name for name, module in base.named_modules() if type(module) is torch.nn.Linear}
    quantized = {name for name, module in base.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert plain == {name for name in plain | quantized if name in kept or name.split(".")[-1] in kept}
