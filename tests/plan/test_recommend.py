"""Values for a first recipe: by size, and what a small card makes of them."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import MptConfig

from qlora_cli.errors import RecipeError, ResourceError
from qlora_cli.model.base import read_config
from qlora_cli.plan.likeness import params_in_name
from qlora_cli.plan.machine.gpus import MIB, USABLE, find_card
from qlora_cli.plan.parameter_counts import parameter_counts
from qlora_cli.plan.recommend import ROWS_A_STEP, _candidates, _values, recommend_values, size_of
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace_cache import Tracer
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.schema import Recipe
from qlora_cli.recipe.starter import Choice, write_starter
from tests.plan.bases import config_of

T4 = find_card("t4")


def card_of(num_bytes):
    return dataclasses.replace(T4, name="made up", memory_mib=num_bytes / USABLE / MIB)


def needs(base, values):
    """Bytes of a recipe with these values."""
    chosen = {key: choice.value for key, choice in vars(values).items() if isinstance(choice, Choice)}
    numbers = {key: float(value) for key, value in chosen.items() if value.replace(".", "").isdigit()}
    recipe = Recipe.model_validate(
        {
            "name": "new",
            "model": {"base_model": str(base)},
            "quantization": {},
            "lora": {"r": int(numbers["r"]), "lora_alpha": numbers["lora_alpha"]},
            "data": {"train": "rows.jsonl", "max_length": int(numbers["max_length"])},
            "training": {
                key: int(numbers[key]) for key in ("per_device_train_batch_size", "gradient_accumulation_steps")
            },
        }
    )
    return Tracer().device_bytes(PlanRequest(recipe, read_config(recipe.model), T4.device))


@pytest.mark.parametrize(
    ("num_params", "r", "batch_size", "learning_rate"),
    [(1e9, 16, 8, "2.0e-4"), (7e9, 16, 4, "2.0e-4"), (13e9, 16, 4, "2.0e-4"), (33e9, 8, 2, "1.0e-4")],
)
def test_values_follow_the_size(num_params, r, batch_size, learning_rate):
    size = size_of(num_params)
    assert (size.r, size.batch_size, size.learning_rate) == (r, batch_size, learning_rate)


def test_a_card_with_room_gets_the_first_choice(tmp_path):
    config = config_of("llama")
    config.max_position_embeddings = 4096
    config.save_pretrained(tmp_path)
    values = recommend_values(str(tmp_path), "rows.jsonl", T4)
    assert (values.r.value, values.per_device_train_batch_size.value, values.max_length.value) == ("16", "8", "2048")
    assert "its config.json" in values.planned


def test_a_smaller_card_gets_fewer_rows_at_once_and_as_many_a_step(tiny_base):
    first = recommend_values(str(tiny_base), "rows.jsonl", T4)
    card = card_of(needs(tiny_base, first) - 1)
    values = recommend_values(str(tiny_base), "rows.jsonl", card)
    assert values.per_device_train_batch_size.value == "4"
    assert int(values.gradient_accumulation_steps.value) * 4 == ROWS_A_STEP
    assert needs(tiny_base, values) <= card.memory_bytes


def test_what_cannot_fit_is_said_with_what_it_needs(tiny_base):
    with pytest.raises(ResourceError) as caught:
        recommend_values(str(tiny_base), "rows.jsonl", card_of(100 * MIB))
    assert "in 2 bit" in caught.value.problems[0].text
    assert "made up has 0.1 GiB" in caught.value.problems[0].text


def test_where_four_bits_do_not_fit_integers_of_fewer_are_tried_and_written_with_the_reason(tiny_base, tmp_path):
    recipe = Recipe.model_validate(
        {"name": "new", "model": {"base_model": str(tiny_base)}, "quantization": {}, "data": {"train": "rows.jsonl"}}
    )
    request, size = PlanRequest(recipe, read_config(recipe.model), T4.device), size_of(1e9)
    tried = list(_candidates(request, size))
    assert [each.recipe.quantization.kind for each in tried[-3:]] == ["nf4", "int3", "int2"]
    for number, bits in ((-2, 3), (-1, 2)):
        out = tmp_path / f"bits-{bits}.yaml"
        write_starter(out, str(tiny_base), "rows.jsonl", overwrite=False, values=_values(tried[number], size, T4, ""))
        written = load_recipe(out).quantization
        assert (written.method, written.bits, written.group_size) == ("int", bits, 64)
        assert "nf4 does not fit" in out.read_text()


def test_a_base_that_is_not_at_hand_is_planned_by_the_size_in_its_name():
    values = recommend_values("nobody/nothing-0.5B", "rows.jsonl", T4)
    assert "the size in its name" in values.planned
    assert "0.5B parameters" in values.planned


def test_a_base_of_unknown_size_is_refused():
    assert params_in_name("nobody/nothing") is None
    with pytest.raises(RecipeError):
        recommend_values("nobody/nothing", "rows.jsonl", T4)


def test_a_first_recipe_leaves_room(tiny_base):
    first = recommend_values(str(tiny_base), "rows.jsonl", T4)
    tight = recommend_values(str(tiny_base), "rows.jsonl", card_of(needs(tiny_base, first) + 1))
    assert tight.per_device_train_batch_size.value == "4"


@pytest.mark.parametrize(
    ("architecture", "attention", "dropout"),
    [("gemma2", "eager", "0.05"), ("qwen3_moe", None, "0"), ("mixtral", None, "0"), ("llama", None, "0.05")],
)
def test_a_base_that_the_defaults_do_not_fit_gets_others(tmp_path, architecture, attention, dropout):
    config_of(architecture).save_pretrained(tmp_path)
    values = recommend_values(str(tmp_path), "rows.jsonl", T4)
    assert (values.attn_implementation and values.attn_implementation.value) == attention
    assert values.lora_dropout.value == dropout
    out = tmp_path / "first.yaml"
    write_starter(out, str(tmp_path), "rows.jsonl", overwrite=False, values=values)
    recipe = load_recipe(out)
    assert recipe.model.attn_implementation == (attention or "sdpa")
    assert recipe.lora.lora_dropout == float(dropout)
    assert parameter_counts(PlanRequest(recipe, config_of(architecture), T4.device)).num_base > 0


def test_rows_are_no_longer_than_the_base_has_positions(tmp_path):
    config = config_of("gpt2")
    assert config.max_position_embeddings == 512
    config.save_pretrained(tmp_path)
    length = recommend_values(str(tmp_path), "rows.jsonl", T4).max_length
    assert (length.value, length.why) == ("512", "the base has no more positions")


def test_a_base_that_needs_other_keys_is_told_how(tmp_path):
    MptConfig(d_model=64, n_heads=2, n_layers=2, vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="MptForCausalLM") as caught:
        recommend_values(str(tmp_path), "rows.jsonl", T4)
    assert "without --gpu" in caught.value.problems[0].hint
