"""Bases that are stored quantized: trained, stopped, resumed to the same bytes, merged, and called what they are."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import RecipeError
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.model.packed_bases import packed_base
from tests.tiny_models import byte_tokenizer

STORED = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}
PACKED = {"fp8": ("sdpa", True), "fp8 experts": ("sdpa", True), "mxfp4": ("eager", False)}
"""Attention, and whether documents are packed: gpt-oss looks past the bounds of documents."""


def write_base(kind, folder):
    tokenizer = byte_tokenizer()
    packed, plain = packed_base("fp8" if kind in STORED else kind, folder, vocab_size=len(tokenizer))
    if kind in STORED:
        packed = folder / "stored"
        settings = BitsAndBytesConfig(**STORED[kind])
        AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings, dtype=torch.bfloat16).save_pretrained(
            packed
        )
    tokenizer.save_pretrained(packed)
    return packed


def make_recipe(kind, base, data, **quantization):
    attention, packing = PACKED.get(kind, ("sdpa", True))
    model = {"base_model": str(base), "attn_implementation": attention, "dequantize": kind in PACKED}
    return Recipe.model_validate(
        {
            "name": "stored",
            "model": model,
            **({"quantization": {}} if kind in PACKED else quantization),
            "lora": {"r": 4, "lora_dropout": 0.0 if kind == "fp8 experts" else 0.05},
            "data": {"train": str(data), "max_length": 128, "packing": packing},
            "training": {
                "max_steps": 4,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 1,
                "learning_rate": 0.01,
                "optim": "adamw_torch",
            },
        }
    )


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", [*STORED, *PACKED])
def test_trained_resumed_to_the_bit_and_merged(tmp_path, chat_data, kind):
    recipe = make_recipe(kind, write_base(kind, tmp_path / "bases"), chat_data)
    straight, resumed = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "resumed")
    train_recipe(recipe, straight, TrainOptions())
    train_recipe(recipe, resumed, TrainOptions(stop_after=2))
    train_recipe(recipe, resumed, TrainOptions(resume=True))
    finals = [run.adapter_path / "adapter_model.safetensors" for run in (straight, resumed)]
    assert finals[0].read_bytes() == finals[1].read_bytes()
    kept = load_recipe(straight.recipe_path).quantization
    assert kept.quant_type == (kind if kind in STORED else "nf4")
    merged = merge_run(straight.path, tmp_path / "merged", MergeOptions())
    assert kept.quant_type.upper() in merged.onto_in_words
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())


def test_three_recipes_on_one_stored_base_agree_or_are_refused_before_anything_is_written(tmp_path, chat_data):
    base = write_base("nf4", tmp_path / "bases")
    runs = {}
    for name, section in {"none": {}, "nf4": {"quantization": {}}}.items():
        runs[name] = RunDirectory(tmp_path / name)
        train_recipe(make_recipe("nf4", base, chat_data, **section), runs[name], TrainOptions())
    recorded = [load_recipe(run.recipe_path) for run in runs.values()]
    assert recorded[0] == recorded[1]
    bytes_of = [(run.adapter_path / "adapter_model.safetensors").read_bytes() for run in runs.values()]
    assert bytes_of[0] == bytes_of[1]
    refused = make_recipe("nf4", base, chat_data, quantization={"quant_type": "int8"})
    with pytest.raises(RecipeError, match=r"int8' cannot be had[\s\S]*--set quantization.quant_type=nf4"):
        train_recipe(refused, RunDirectory(tmp_path / "int8"), TrainOptions())
    assert not (tmp_path / "int8").exists()
