"""Adapters go where the recipe says, in the dtype it says, and come back as they were saved."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from qlora_cli.errors import IdentityError, RecipeError
from qlora_cli.model.adapter import ADAPTER_WEIGHTS, attach_adapter, load_adapter, save_adapter, set_adapter_tensors
from qlora_cli.model.base import load_base
from qlora_cli.recipe.schema import LoraSection, ModelSection, QuantizationSection
from tests.plan.bases import config_of


def base_of(folder, quantization=None, dtype="auto"):
    return load_base(ModelSection(base_model=str(folder), dtype=dtype), quantization)


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_all_linear_adapts_every_layer_but_the_head(tiny_base):
    model = attach_adapter(base_of(tiny_base, QuantizationSection()), LoraSection(r=4))
    adapted = {name.split(".lora_")[0].split(".")[-1] for name in trained_names(model)}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("autocast", "dtype", "expected"),
    [(True, "bfloat16", torch.float32), (False, "bfloat16", torch.bfloat16), (False, "float32", torch.float32)],
)
def test_adapter_weights_have_the_dtype_of_the_recipe(tiny_base, autocast, dtype, expected):
    for quantization in (None, QuantizationSection()):
        base = base_of(tiny_base, quantization, dtype)
        model = attach_adapter(base, LoraSection(r=4, autocast_adapter_dtype=autocast))
        assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {expected}


def test_the_magnitude_of_dora_stays_in_float32(tiny_base):
    lora = LoraSection(r=4, use_dora=True, autocast_adapter_dtype=False)
    model = attach_adapter(base_of(tiny_base, dtype="bfloat16"), lora)
    dtypes = {"magnitude" in name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_rslora_scales_by_the_root_of_the_rank(tiny_base):
    model = attach_adapter(base_of(tiny_base), LoraSection(r=16, lora_alpha=8, use_rslora=True))
    assert model.base_model.model.model.layers[0].mlp.up_proj.scaling["default"] == 8 / 4


def test_a_target_that_matches_nothing_is_an_error_also_beside_one_that_does(tiny_base):
    with pytest.raises(RecipeError, match="'c_attn' matches no linear module") as caught:
        attach_adapter(base_of(tiny_base), LoraSection(target_modules=("q_proj", "c_attn")))
    assert "q_proj" in caught.value.problems[0].hint


def test_a_module_to_save_that_does_not_exist_is_an_error(tiny_base):
    with pytest.raises(RecipeError, match="modules_to_save"):
        attach_adapter(base_of(tiny_base), LoraSection(modules_to_save=("embeddings",)))


def test_conv1d_targets_of_gpt2_get_adapters(tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=64, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        tmp_path
    )
    for quantization in (None, QuantizationSection()):
        model = attach_adapter(base_of(tmp_path, quantization), LoraSection(r=4, target_modules=("c_attn", "c_proj")))
        adapted = {name.split(".lora_")[0].split(".")[-1] for name in trained_names(model)}
        assert adapted == {"c_attn", "c_proj"}
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def fill(model):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)


def test_a_saved_adapter_loads_with_plain_peft(tiny_base, tmp_path):
    model = attach_adapter(base_of(tiny_base), LoraSection(r=4))
    fill(model)
    save_adapter(model, tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(plain.eval()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_loaded_adapter_has_the_bytes_and_dtypes_it_was_saved_with(tiny_base, tmp_path, autocast):
    base = base_of(tiny_base, QuantizationSection(), "bfloat16")
    model = attach_adapter(base, LoraSection(r=4, use_dora=True, autocast_adapter_dtype=autocast))
    fill(model)
    save_adapter(model, tmp_path / "one")
    loaded = load_adapter(base_of(tiny_base, QuantizationSection(), "bfloat16"), tmp_path / "one")
    save_adapter(loaded, tmp_path / "two")
    one, two = (load_file(tmp_path / name / ADAPTER_WEIGHTS) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) and one[key].dtype is two[key].dtype for key in one)


def test_tensors_of_another_shape_or_dtype_are_refused(tiny_base, tmp_path):
    save_adapter(attach_adapter(base_of(tiny_base), LoraSection(r=8)), tmp_path)
    model = attach_adapter(base_of(tiny_base), LoraSection(r=4))
    with pytest.raises(IdentityError, match="shapes"):
        set_adapter_tensors(model, load_file(tmp_path / ADAPTER_WEIGHTS))


def test_an_adapter_of_another_base_is_refused(tiny_base, tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=128, n_embd=64, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    save_adapter(attach_adapter(base_of(tiny_base), LoraSection(r=4)), tmp_path / "adapter")
    with pytest.raises(IdentityError, match="does not fit"):
        load_adapter(base_of(tmp_path / "gpt2"), tmp_path / "adapter")


@pytest.mark.parametrize("quantization", [None, QuantizationSection()], ids=["16 bit", "nf4"])
@pytest.mark.parametrize("name", ["llama4", "phimoe"])
def test_a_router_that_derives_from_a_linear_layer_is_none(tmp_path, name, quantization):
    AutoModelForCausalLM.from_config(config_of(name)).save_pretrained(tmp_path)
    model = attach_adapter(base_of(tmp_path, quantization), LoraSection(r=2, lora_dropout=0))
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    assert not [name for name in trained_names(model) if "router" in name]
    assert [name for name in trained_names(model) if "q_proj" in name]
    with pytest.raises(RecipeError, match="'router' matches no linear module"):
        attach_adapter(base_of(tmp_path, quantization), LoraSection(target_modules=("router",)))
