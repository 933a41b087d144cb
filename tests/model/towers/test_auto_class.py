"""One function decides which class loads a base; whatever has a class for text alone is loaded by that."""

from __future__ import annotations

import pytest
import transformers as hf

from qlora_cli.model.base import load_base
from qlora_cli.model.towers.auto_class import auto_class, has_parts, own_auto_class
from qlora_cli.recipe.schema import ModelSection
from tests.model.bases import MULTIMODAL

LANGUAGE_MODEL_ALONE = {"qwen3_5_vl", "qwen3_5_moe_vl", "llama4"}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_multimodal_base_is_loaded_with_all_its_weights(toy, name):
    base = load_base(ModelSection(base_model=str(toy(name))), None)  # refuses a base that lacks weights
    own = type(MULTIMODAL[name]()).__name__
    assert (type(base).__name__ == own) == (name not in LANGUAGE_MODEL_ALONE)
    assert own_auto_class(hf.AutoConfig.from_pretrained(toy(name))) is hf.AutoModelForMultimodalLM


@pytest.mark.parametrize("config", [hf.LlamaConfig(), hf.GPT2Config(), hf.Qwen3MoeConfig(), hf.Gemma3TextConfig()])
def test_a_language_model_is_loaded_as_one(config):
    assert auto_class(config) is own_auto_class(config) is hf.AutoModelForCausalLM
    assert not has_parts(config)


@pytest.mark.parametrize("config", [hf.T5Config(), hf.UdopConfig(), hf.ViTConfig()])
def test_what_is_no_decoder_is_left_to_the_class_that_refuses_it(config):
    assert auto_class(config) is hf.AutoModelForCausalLM
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        auto_class(config).from_config(config)


def test_code_of_the_bases_own_repository_goes_before_a_class_of_the_library():
    theirs = type("TheirConfig", (hf.Qwen2_5_VLConfig,), {"__module__": "transformers_modules.theirs"})()
    theirs.auto_map = {"AutoModelForCausalLM": "modeling_theirs.TheirModel"}
    assert auto_class(hf.Qwen2_5_VLConfig()) is hf.AutoModelForMultimodalLM
    assert auto_class(theirs) is own_auto_class(theirs) is hf.AutoModelForCausalLM
