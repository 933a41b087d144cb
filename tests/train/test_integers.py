"""Bases in integers: trained, stopped, resumed to the same bytes, and merged into the model that was trained."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from qlora_cli.cache_folder import cache_folder
from qlora_cli.deploy.integers import is_in_integers
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import RecipeError
from qlora_cli.model.fingerprint import fingerprint_base
from qlora_cli.model.integer import making
from qlora_cli.model.tuned import load_tuned
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.deploy.models import save_gpt2
from tests.tiny_models import byte_tokenizer
from tests.train.integer_recipe import integer_recipe

IDS = torch.arange(1, 60)[None]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A Qwen3 in bfloat16 whose head is its embeddings."""
    folder = tmp_path_factory.mktemp("qwen") / "tiny-qwen3"
    tokenizer = byte_tokenizer()
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_on(chat_data):
    """Builds a recipe on a base in integers."""

    def build(base, quantization=None, **keys):
        return integer_recipe(base, chat_data, quantization, **{"lora_dropout": 0.05} | keys)

    return build


def in_integers(bits, group_size=32, **settings):
    return {"method": "int", "bits": bits, "group_size": group_size} | settings


def adapter_bytes(run):
    return (run.adapter_path / "adapter_model.safetensors").read_bytes()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


CASES = {
    "llama, 4 bits, QA-LoRA": ("llama", in_integers(4), True),
    "qwen3, 3 bits, QA-LoRA": ("qwen3", in_integers(3), True),
    "llama, 2 bits, QA-LoRA": ("llama", in_integers(2, 64), True),
    "qwen3, 4 bits, LoRA": ("qwen3", in_integers(4, 64), False),
    "llama, 3 bits, LoRA": ("llama", in_integers(3), False),
    "qwen3, 2 bits, LoRA": ("qwen3", in_integers(2), False),
    "qwen3, layers left out": ("qwen3", in_integers(4, skip_modules=["v_proj", "down_proj"]), True),
}


@pytest.mark.every(3)
@pytest.mark.parametrize("case", CASES)
def test_trained_resumed_to_the_bit_and_merged(case, tiny_base, qwen, recipe_on, tmp_path):
    kind, section, is_grouped = CASES[case]
    recipe = recipe_on({"llama": tiny_base, "qwen3": qwen}[kind], section, use_qalora=is_grouped)
    straight, resumed = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "resumed")
    train_recipe(recipe, straight, TrainOptions())
    train_recipe(recipe, resumed, TrainOptions(stop_after=2))
    train_recipe(recipe, resumed, TrainOptions(resume=True))
    assert adapter_bytes(straight) == adapter_bytes(resumed)
    assert load_recipe(straight.recipe_path).quantization == recipe.quantization
    trained = load_tuned(straight.path).model
    merged = merge_run(straight.path, None, MergeOptions(dtype="auto" if is_grouped else "float32"))
    assert is_in_integers(merged.path) == is_grouped
    plain = AutoModelForCausalLM.from_pretrained(merged.path, dtype="float32")
    difference = (logits(trained) - logits(plain)).abs().max()
    with trained.disable_adapter():
        effect = (logits(trained) - logits(plain)).abs().max()
    is_mixed = "skip_modules" in section  # their sums are rounded to the bfloat16 of the files
    assert difference < (0.05 if is_mixed else 1e-4) < 0.1 < effect


def test_a_cache_that_was_deleted_is_made_again_and_a_merged_model_is_a_base(
    tiny_base, recipe_on, empty_cache, tmp_path, monkeypatch
):
    first, second = RunDirectory(tmp_path / "first"), RunDirectory(tmp_path / "second")
    train_recipe(recipe_on(tiny_base, in_integers(4), steps=2, use_qalora=True), first, TrainOptions())
    [folder] = cache_folder("bases").iterdir()
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    hashed = []
    monkeypatch.setattr(making, "fingerprint_base", lambda model: hashed.append(model) or fingerprint_base(model))
    merged = merge_run(first.path, None, MergeOptions()).path
    assert len(hashed) == 1  # the folder is looked for once
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made

    recipe = recipe_on(merged, steps=2, use_qalora=True)
    train_recipe(recipe, second, TrainOptions())
    assert load_recipe(second.recipe_path).quantization.kind == "int4"
    assert list(cache_folder("bases").iterdir()) == [folder]  # nothing is rounded a second time
    again = merge_run(second.path, None, MergeOptions())
    assert again.agreement.max_logit_difference < 1e-4


def test_a_base_without_linear_layers_is_refused_before_anything_is_trained(recipe_on, tmp_path):
    base = save_gpt2(tmp_path / "gpt2")
    with pytest.raises(RecipeError) as caught:
        train_recipe(recipe_on(base, in_integers(4)), RunDirectory(tmp_path / "run"), TrainOptions())
    [problem] = caught.value.problems
    assert problem.text == "quantization.method: int is for linear layers, and GPT2LMHeadModel has none to round"
    assert problem.hint == "--set quantization.method=bitsandbytes"
