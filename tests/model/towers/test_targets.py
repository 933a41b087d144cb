"""An adapter is on the language model alone, and what is saved of it goes onto the base's own class by plain PEFT."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file

from qlora_cli.errors import RecipeError
from qlora_cli.model.adapter import ADAPTER_WEIGHTS, attach_adapter, load_adapter, save_adapter
from qlora_cli.model.base import load_base
from qlora_cli.recipe.schema import LoraSection, ModelSection
from tests.model.bases import MULTIMODAL

ROWS = torch.arange(3, 43).view(2, 20)
TOWERS = ("visual", "vision", "multi_modal_projector")
TARGETS = {"all-linear": "all-linear", "names": ["q_proj", "v_proj"], "a longer name": ["layers.1.self_attn.q_proj"]}


def load(folder):
    return load_base(ModelSection(base_model=str(folder)), None)


def adapter_on(folder, **lora):
    """An adapter whose B is not zero, as after training."""
    model = attach_adapter(load(folder), LoraSection(r=4, lora_dropout=0, **lora))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=ROWS).logits


@pytest.mark.every(3)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", MULTIMODAL)
def test_an_adapter_fits_the_bases_own_class_whole_and_exactly(toy, tmp_path, name, targets):
    model = adapter_on(toy(name), target_modules=TARGETS[targets])
    save_adapter(model, tmp_path)
    stored = load_file(tmp_path / ADAPTER_WEIGHTS)
    assert stored
    assert not [key for key in stored if any(tower in key for tower in TOWERS)]
    whole = hf.AutoModelForMultimodalLM.from_pretrained(toy(name), dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of tensors that it misses or cannot place
        plain = PeftModel.from_pretrained(whole, str(tmp_path)).eval()
    on_own_class = {key.replace(".default", "") for key, _ in plain.named_parameters() if ".lora_" in key}
    assert on_own_class == set(stored)
    assert torch.equal(logits(plain), logits(model))
    assert torch.equal(logits(load_adapter(load(toy(name)), tmp_path)), logits(model))


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_row_of_text_gives_every_adapter_tensor_a_gradient(toy, name):
    model = adapter_on(toy(name)).train()
    types = {"token_type_ids": torch.zeros_like(ROWS)} if name == "gemma3" else {}
    model(input_ids=ROWS, labels=ROWS, **types).loss.backward()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert [key for key, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()] == []


def test_names_of_the_loaded_class_are_still_read(toy, tmp_path):
    """Adapters of Qwen3.5 that were made before names were those of the own class, or elsewhere."""
    model = adapter_on(toy("qwen3_5_vl"))
    model.save_pretrained(tmp_path)
    assert any(".model.model.layers.0." in key for key in load_file(tmp_path / ADAPTER_WEIGHTS))
    assert torch.equal(logits(load_adapter(load(toy("qwen3_5_vl")), tmp_path)), logits(model))


def test_a_part_that_is_trained_in_full_goes_the_same_way(toy, tmp_path):
    model = adapter_on(toy("qwen3_5_vl"), modules_to_save=["lm_head"])
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.add_(0.1)
    save_adapter(model, tmp_path)
    whole = hf.AutoModelForMultimodalLM.from_pretrained(toy("qwen3_5_vl"), dtype=torch.float32)
    assert torch.equal(logits(PeftModel.from_pretrained(whole, str(tmp_path)).eval()), logits(model))


@pytest.mark.parametrize(
    ("name", "target"),
    [("gemma3", "fc1"), ("qwen2_5_vl", "qkv"), ("mistral3", "multi_modal_projector.linear_1"), ("gemma4", "linear")],
)
def test_a_target_outside_the_language_model_is_refused_with_those_inside(toy, name, target):
    with pytest.raises(
        RecipeError, match=f"'{target}' is only in a part of the base model that text does not"
    ) as caught:
        attach_adapter(load(toy(name)), LoraSection(target_modules=["q_proj", target]))
    assert "q_proj" in caught.value.problems[0].hint
    assert "fc1" not in caught.value.problems[0].hint


def test_a_module_to_train_in_full_outside_the_language_model_is_refused(toy):
    with pytest.raises(RecipeError, match=r"lora.modules_to_save: 'multi_modal_projector' is only in a part"):
        attach_adapter(load(toy("mistral3")), LoraSection(modules_to_save=["multi_modal_projector"]))


def test_layers_that_only_images_reach_are_left_out_of_a_language_model_that_is_loaded_alone(tmp_path):
    """Llama 3.2 Vision's cross-attention: text goes past it."""
    text = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 128, "pad_token_id": 0}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1]}
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_global_layers": 1}
    vision |= {"attention_heads": 2, "vision_output_dim": 128, "intermediate_layers_indices": [0], "image_size": 28}
    torch.manual_seed(0)
    config = hf.MllamaConfig(text_config=text, vision_config=vision)
    hf.MllamaForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    model = adapter_on(tmp_path / "base").train()
    assert type(model.get_base_model()).__name__ == "MllamaForCausalLM"
    model(input_ids=ROWS, labels=ROWS).loss.backward()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert [key for key, parameter in trained.items() if parameter.grad is None] == []
    save_adapter(model.eval(), tmp_path / "adapter")
    whole = hf.AutoModelForMultimodalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    plain = PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).eval()
    assert torch.allclose(logits(plain), logits(model), atol=1e-5)
    assert sum("lora_A" in key for key, _ in plain.named_parameters()) == sum("lora_A" in key for key in trained)
