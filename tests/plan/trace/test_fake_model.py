"""The fake model is the one that training would load: names, modules, dtypes, bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, MptConfig, ViTConfig

from qlora_cli.errors import RecipeError
from qlora_cli.model.prequantized import recipe_on
from qlora_cli.plan.trace.fake_model import fake_model, fake_tensors, meta_model, skeleton
from tests.plan.bases import CONFIGS, config_of, real_model, request_for


def described(model):
    """Each parameter and buffer with what it is and takes, and each layer's class."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.dtype, tensor.untyped_storage().nbytes(), tensor.requires_grad) for name, tensor in tensors}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model__dtype": "bfloat16"},
        {"quantization__quant_type": "int8"},
        {"quantization__skip_modules": ("down_proj",), "lora__modules_to_save": ("lm_head",)},
        {"quantized": False, "lora__autocast_adapter_dtype": False, "model__dtype": "bfloat16"},
    ],
    ids=str,
)
def test_it_is_the_model_that_training_loads(base_folder, settings):
    folder = base_folder("llama")
    request = request_for(AutoConfig.from_pretrained(folder), **settings)
    assert described(fake_model(request, fake_tensors())) == described(real_model(request, folder))


STORED = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("name", "stored", "dtype"),
    [
        ("llama", STORED, "float32"),
        ("llama", {**STORED, "bnb_4bit_use_double_quant": True}, "bfloat16"),
        ("llama", {"load_in_8bit": True}, "bfloat16"),
        ("llama", {**STORED, "llm_int8_skip_modules": ["lm_head", "model.layers.1.mlp", "v_proj"]}, "bfloat16"),
    ],
)
def test_it_is_so_for_a_base_that_is_stored_quantized(base_folder, tmp_path, name, stored, dtype):
    settings = BitsAndBytesConfig(**stored)
    plain = AutoModelForCausalLM.from_pretrained(base_folder(name), quantization_config=settings, dtype=torch.bfloat16)
    plain.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    request = request_for(config, quantized=False, model__dtype=dtype)
    request = replace(request, recipe=recipe_on(request.recipe, config))
    assert described(fake_model(request, fake_tensors())) == described(real_model(request, tmp_path))


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_so_for_every_architecture(base_folder, name):
    folder = base_folder(name)
    request = request_for(AutoConfig.from_pretrained(folder), model__dtype="bfloat16")
    assert described(fake_model(request, fake_tensors())) == described(real_model(request, folder))


def test_its_tensors_hold_nothing():
    model = fake_model(request_for(config_of("llama")), fake_tensors())
    assert all(isinstance(tensor, FakeTensor) for tensor in [*model.parameters(), *model.buffers()])


def test_tied_embeddings_stay_one():
    config = config_of("llama")
    config.tie_word_embeddings = True
    base = fake_model(request_for(config), fake_tensors()).get_base_model()
    assert base.lm_head.weight is base.model.embed_tokens.weight


def test_a_module_to_skip_that_does_not_exist_is_refused():
    with pytest.raises(RecipeError, match="no module named 'nowhere'"):
        meta_model(request_for(config_of("llama"), quantization__skip_modules=("nowhere",)))


def test_a_target_that_does_not_exist_is_refused():
    with pytest.raises(RecipeError, match="'nowhere' matches no linear module"):
        meta_model(request_for(config_of("llama"), lora__target_modules=("nowhere",)))


def test_dropout_on_fused_experts_is_refused_with_the_way_out():
    with pytest.raises(RecipeError) as caught:
        meta_model(request_for(config_of("mixtral"), lora__lora_dropout=0.1))
    assert "--set lora.lora_dropout=0" in str(caught.value)


def test_a_base_without_positions_is_refused_as_training_refuses_it():
    config = MptConfig(d_model=128, n_heads=4, n_layers=2, vocab_size=512)
    with pytest.raises(RecipeError, match="takes no position_ids"):
        meta_model(request_for(config, model__attn_implementation="eager"))


def test_a_configuration_that_makes_no_language_model_is_refused():
    with pytest.raises(RecipeError, match="cannot be loaded"):
        skeleton(request_for(ViTConfig()))


def test_seventy_billion_parameters_are_described_at_once():
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    base = skeleton(request_for(config))
    assert base.num_parameters() == 70_553_706_496  # the published size of Llama-3.1-70B
    assert all(parameter.device == torch.device("meta") for parameter in base.parameters())
