"""A base that bitsandbytes has stored is trained as what it is, whatever asks for it."""

from __future__ import annotations

import json

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from qlora_cli.errors import RecipeError
from qlora_cli.model.base import load_base, read_config
from qlora_cli.model.dequantize import is_quantized
from qlora_cli.model.prequantized import quantization_on, recipe_on, stored_in
from qlora_cli.recipe.schema import ModelSection, QuantizationSection, Recipe
from tests.model.packed_bases import packed_base

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
SINGLE = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
INT8 = {"load_in_8bit": True}

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tiny_base):
    """Makes a folder of the tiny base as bitsandbytes stores it."""

    def make(name, **settings):
        folder = tmp_path_factory.mktemp(name)
        config = BitsAndBytesConfig(**settings)
        AutoModelForCausalLM.from_pretrained(
            tiny_base, quantization_config=config, dtype=torch.bfloat16
        ).save_pretrained(folder)
        return folder

    return make


def recipe(folder, quantization=None):
    sections = {"name": "r", "model": {"base_model": str(folder)}, "data": {"train": "rows.jsonl"}}
    return Recipe.model_validate(sections | ({} if quantization is None else {"quantization": quantization}))


@pytest.mark.parametrize(
    ("settings", "asked", "kept"),
    [
        (NF4, None, ("nf4", True)),
        (NF4, {}, ("nf4", True)),
        (NF4, {"quant_type": "nf4", "double_quant": True}, ("nf4", True)),
        (SINGLE, {}, ("nf4", False)),
        (SINGLE, {"double_quant": False}, ("nf4", False)),
        (FP4, None, ("fp4", False)),
        (INT8, {"quant_type": "int8"}, ("int8", None)),
        (INT8, None, ("int8", None)),
    ],
)
def test_the_recipe_says_what_the_base_is(stored, settings, asked, kept):
    folder = stored("base", **settings)
    config = read_config(ModelSection(base_model=str(folder)))
    found = recipe_on(recipe(folder, asked), config).quantization
    assert (found.quant_type, found.double_quant) == kept
    assert (stored_in(folder).quant_type, stored_in(folder).double_quant) == kept
    base = load_base(ModelSection(base_model=str(folder)), found)
    states = [getattr(module.weight, "quant_state", None) for module in base.modules() if is_quantized(module)]
    assert states
    assert {(state.quant_type, state.nested) for state in states if state} in ({kept}, set())


@pytest.mark.parametrize(
    ("settings", "asked", "text"),
    [
        (NF4, {"quant_type": "int8"}, "'quantization.quant_type: int8' cannot be had"),
        (NF4, {"double_quant": False}, "'quantization.double_quant: false' cannot be had"),
        (SINGLE, {"double_quant": True}, "stored in nf4 by bitsandbytes without double quantization"),
        (FP4, {}, "'quantization.quant_type: nf4' cannot be had"),
        (INT8, {}, "'quantization.quant_type: nf4' cannot be had"),
        (NF4, {"skip_modules": ["up_proj"]}, "names 'up_proj', whose weights are stored in nf4"),
    ],
)
def test_another_storage_is_refused_by_all_who_load_it(stored, settings, asked, text):
    folder = stored("base", **settings)
    model = ModelSection(base_model=str(folder))
    for refused in (
        lambda: recipe_on(recipe(folder, asked), read_config(model)),
        lambda: quantization_on(model, QuantizationSection(**asked), read_config(model)),
        lambda: load_base(model, QuantizationSection(**asked)),
    ):
        with pytest.raises(RecipeError, match=text):
            refused()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [NF4, INT8], ids=["nf4", "int8"])
def test_a_stored_base_computes_as_one_that_is_quantized_now(stored, tiny_base, settings, dtype):
    """Every part in the recipe's dtype, though the base was stored in bfloat16."""
    asked = QuantizationSection(quant_type="int8" if settings is INT8 else "nf4")
    now = load_base(ModelSection(base_model=str(tiny_base), dtype=dtype), asked)
    then = load_base(ModelSection(base_model=str(stored("base", **settings)), dtype=dtype), None)
    dtypes = {name: parameter.dtype for name, parameter in now.named_parameters()}
    assert {name: parameter.dtype for name, parameter in then.named_parameters()} == dtypes
    if dtype == "bfloat16":
        assert torch.equal(then(IDS).logits, now(IDS).logits)


def test_skipped_modules_are_those_of_the_base(stored):
    folder = stored("base", **NF4, llm_int8_skip_modules=["lm_head", "up_proj", "model.layers.0.mlp.down_proj"])
    base = load_base(ModelSection(base_model=str(folder)), QuantizationSection(skip_modules=["up_proj"]))
    plain = [
        name for name, module in base.named_modules() if hasattr(module, "in_features") and not is_quantized(module)
    ]
    assert plain == [
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.mlp.up_proj",
        "lm_head",
    ]


def test_weights_that_are_not_what_config_json_says_are_refused(stored):
    folder = stored("base", **NF4)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"]["bnb_4bit_use_double_quant"] = False
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(RecipeError, match="q_proj are nf4, and not nf4 without double quantization"):
        load_base(ModelSection(base_model=str(folder)), None)


def test_experts_that_were_packed_one_by_one_are_refused_with_the_way_on(tmp_path):
    """As transformers 4 saved them: transformers 5 has one weight for all experts of a layer."""
    packed, plain = packed_base("fp8 experts", tmp_path)
    tensors = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        tensors[name] = weight
        if ".experts." in name:
            tensors[name], state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            tensors |= {f"{name}.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**settings, "quantization_config": NF4}))
    (packed / "README.md").write_text("---\nbase_model: Qwen/Qwen3-30B-A3B\n---\n")
    model = ModelSection(base_model=str(packed))
    for refused in (lambda: load_base(model, None), lambda: recipe_on(recipe(packed), read_config(model))):
        with pytest.raises(RecipeError, match=r"stores each expert by itself in nf4[\s\S]*=Qwen/Qwen3-30B-A3B"):
            refused()
