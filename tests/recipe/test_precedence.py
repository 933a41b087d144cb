"""Of two settings that exclude each other, the one that was written over the other counts, and a note says so."""

from __future__ import annotations

import pytest

from qlora_cli.errors import RecipeError
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.shipped import list_shipped
from qlora_cli.recipe.starter import write_starter

HEAD = "model: {base_model: some/base}\ndata: {train: rows.jsonl}\n"
PAIRS = {
    "length": ("training.num_train_epochs", "2", "training.max_steps", "10"),
    "length the other way": ("training.max_steps", "10", "training.num_train_epochs", "2"),
    "held-out rows": ("data.eval", "held.jsonl", "data.eval_fraction", "0.1"),
    "held-out rows the other way": ("data.eval_fraction", "0.1", "data.eval", "held.jsonl"),
    "initial weights": ("lora.use_dora", "true", "lora.init_lora_weights", "pissa"),
    "initial weights the other way": ("lora.init_lora_weights", "pissa", "lora.use_dora", "true"),
    "warm-up": ("training.warmup_ratio", "0.1", "training.lr_scheduler_type", "constant"),
    "constants of int8": ("quantization.double_quant", "true", "quantization.quant_type", "int8"),
    "experts of int8": ("quantization.experts", "true", "quantization.quant_type", "int8"),
    "commit of a folder": ("model.revision", "main", "model.base_model", "./base"),
    "dtype of adapters": ("lora.autocast_adapter_dtype", "false", "model.dtype", "float16"),
    "kernel in float32": ("model.attn_implementation", "flash_attention_2", "model.dtype", "float32"),
    "project without a tracker": ("tracking.project", "chat", "tracking.report_to", "[]"),
    "mix of one source": ("data.mix_by", "rows", "data.train", "one.jsonl"),
}
"""The lower setting and the one that is written over it."""
BESIDE = {
    "data.mix_by": "data: {train: [a.jsonl, b.jsonl]}\n",
    "tracking.project": "tracking: {report_to: [wandb]}\n",
}
"""What else a part must say for a setting to be right in it."""


def section(key: str, value: str) -> str:
    name, _, last = key.partition(".")
    return f"{name}: {{{last}: {value}}}\n"


def value_at(recipe, key):
    for part in key.split("."):
        recipe = getattr(recipe, part, None)
    return recipe


def loaded(path, overrides=()):
    notes: list[str] = []
    return load_recipe(path, overrides, notes.append), notes


@pytest.mark.parametrize("case", PAIRS)
def test_an_override_takes_the_place_of_what_excludes_it(write_recipe, case):
    lower, lower_value, upper, upper_value = PAIRS[case]
    write_recipe(HEAD, "head.yaml")
    write_recipe("extends: head.yaml\n" + BESIDE.get(lower, ""), "beside.yaml")
    path = write_recipe("extends: beside.yaml\n" + section(lower, lower_value))
    plain, none = loaded(path)
    recipe, (note,) = loaded(path, [f"{upper}={upper_value}"])
    assert not none
    assert value_at(recipe, lower) == value_at(load_recipe(write_recipe(HEAD, "default.yaml")), lower)
    assert value_at(recipe, lower) != value_at(plain, lower)
    assert value_at(recipe, upper) != value_at(plain, upper)
    assert note == (
        f"`--set {upper}={upper_value}` overrides '{lower}: {lower_value}' (recipe.yaml:2), which is left out"
    )


@pytest.mark.parametrize("case", PAIRS)
def test_a_recipe_takes_the_place_of_what_its_part_says(write_recipe, case):
    lower, lower_value, upper, upper_value = PAIRS[case]
    write_recipe(HEAD + BESIDE.get(lower, "") if lower != "data.mix_by" else HEAD, "head.yaml")
    write_recipe("extends: head.yaml\n" + section(lower, lower_value), "part.yaml")
    path = write_recipe("extends: part.yaml\n" + section(upper, upper_value))
    _, (note,) = loaded(path)
    assert f"'{upper}' (recipe.yaml:2) overrides '{lower}: {lower_value}' (part.yaml:2)" in note


def test_later_parts_win_over_earlier_ones(write_recipe):
    write_recipe(HEAD + "training: {max_steps: 5}\n", "a.yaml")
    write_recipe("training: {num_train_epochs: 2}\n", "b.yaml")
    forth, _ = loaded(write_recipe("extends: [a.yaml, b.yaml]\n"))
    back, _ = loaded(write_recipe("extends: [b.yaml, a.yaml]\n"))
    assert (forth.training.max_steps, forth.training.num_train_epochs) == (None, 2)
    assert (back.training.max_steps, back.training.num_train_epochs) == (5, None)


def test_a_part_that_is_laid_in_twice_lies_where_it_was_laid_in_last(write_recipe):
    write_recipe(HEAD + "training: {max_steps: 5}\n", "base.yaml")
    write_recipe("extends: base.yaml\ntraining: {num_train_epochs: 2}\n", "left.yaml")
    write_recipe("extends: base.yaml\n", "right.yaml")
    recipe, _ = loaded(write_recipe("extends: [left.yaml, right.yaml]\n"))
    assert (recipe.training.max_steps, recipe.training.num_train_epochs) == (5, None)


@pytest.mark.parametrize("case", [case for case in PAIRS if case != "mix of one source"])
def test_nothing_gives_way_in_one_file_or_between_two_overrides(write_recipe, case):
    lower, lower_value, upper, upper_value = PAIRS[case]
    write_recipe(HEAD, "head.yaml")
    (one, first), (other, second) = lower.split("."), upper.split(".")
    keys = (
        f"{one}: {{{first}: {lower_value}, {second}: {upper_value}}}\n"
        if one == other
        else section(lower, lower_value) + section(upper, upper_value)
    )
    with pytest.raises(RecipeError):
        load_recipe(write_recipe("extends: head.yaml\n" + keys))
    with pytest.raises(RecipeError):
        load_recipe(write_recipe(HEAD), [f"{lower}={lower_value}", f"{upper}={upper_value}"])


def test_what_depended_on_a_setting_that_is_left_out_goes_with_it(write_recipe):
    write_recipe(HEAD, "head.yaml")
    data = "data: {train: [a.jsonl, b.jsonl], mix_by: rows, stopping_strategy: all_exhausted}\n"
    recipe, notes = loaded(write_recipe("extends: head.yaml\n" + data), ["data.train=a.jsonl"])
    assert (recipe.data.mix_by, len(notes)) == (None, 2)


def test_a_module_is_taken_out_of_the_list_below(write_recipe):
    path = write_recipe(HEAD + "lora: {target_modules: [q_proj, v_proj]}\n")
    recipe, (note,) = loaded(path, ["lora.modules_to_save=[v_proj]"])
    assert recipe.lora.target_modules == ("q_proj",)
    assert "overrides 'v_proj' of 'lora.target_modules' (recipe.yaml:3)" in note


def test_a_setting_that_would_change_what_is_trained_gives_way_to_nothing(write_recipe):
    path = write_recipe(HEAD + "training: {lr_scheduler_type: constant}\n")
    with pytest.raises(RecipeError, match="has no effect with"):
        load_recipe(path, ["training.warmup_ratio=0.1"])


def test_every_recipe_that_is_shipped_or_started_takes_another_length(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    starter = tmp_path / "mine.yaml"
    write_starter(starter, "Qwen/Qwen3-8B", "data/train.jsonl", overwrite=False)
    for path in [starter, *(recipe.path for recipe in list_shipped())]:
        for override, length in (
            ("training.max_steps=7", (7, "steps")),
            ("training.num_train_epochs=2", (2, "epochs")),
        ):
            recipe, _ = loaded(path, [override])
            assert recipe.training.length == length, path
