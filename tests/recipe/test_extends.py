"""`extends:`: parts laid over one another."""

from __future__ import annotations

import pytest

from qlora_cli.errors import RecipeError
from qlora_cli.recipe.reader import load_recipe

DATA = "data: {train: rows.jsonl}\n"


def problems_of(path, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.problems


def test_later_parts_win_and_the_recipe_wins_over_all(write_recipe):
    write_recipe("lora: {r: 1, lora_alpha: 1, lora_dropout: 0.1}\n", "parts/a.yaml")
    write_recipe("lora: {r: 2, lora_alpha: 2}\nmodel: {base_model: some/base}\n", "parts/b.yaml")
    path = write_recipe("extends: [parts/a.yaml, parts/b.yaml]\nlora: {r: 3}\n" + DATA)
    lora = load_recipe(path).lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (3, 2.0, 0.1)


def test_lists_replace_and_do_not_add_up(write_recipe):
    write_recipe("lora: {target_modules: [q_proj, v_proj]}\n", "part.yaml")
    path = write_recipe("extends: part.yaml\nmodel: {base_model: b}\nlora: {target_modules: [k_proj]}\n" + DATA)
    assert load_recipe(path).lora.target_modules == ("k_proj",)


def test_a_null_takes_a_section_of_a_part_away(write_recipe):
    write_recipe("quantization: {quant_type: fp4}\nmodel: {base_model: b}\n", "part.yaml")
    assert load_recipe(write_recipe("extends: part.yaml\nquantization: null\n" + DATA)).quantization is None


def test_paths_are_relative_to_the_file_that_names_them(write_recipe):
    write_recipe("model: {base_model: inner}\n", "configs/models/inner.yaml")
    write_recipe("extends: models/inner.yaml\n", "configs/outer.yaml")
    path = write_recipe("extends: ../configs/outer.yaml\n" + DATA, "recipes/chat.yaml")
    assert load_recipe(path).model.base_model == "inner"


def test_a_recipe_anywhere_can_extend_a_shipped_part(write_recipe):
    path = write_recipe("extends: configs/models/qwen3-8b.yaml\n" + DATA, "deep/folder/mine.yaml")
    assert load_recipe(path).model.base_model == "Qwen/Qwen3-8B"


def test_a_local_configs_folder_hides_the_shipped_one(write_recipe):
    write_recipe("model: {base_model: mine}\n", "configs/models/mine.yaml")
    path = write_recipe("extends: configs/models/qwen3-8b.yaml\n" + DATA)
    assert "does not exist" in problems_of(path)[0].text


def test_one_part_may_be_reached_by_two_ways(write_recipe):
    write_recipe("model: {base_model: base}\n", "base.yaml")
    write_recipe("extends: base.yaml\nlora: {r: 4}\n", "left.yaml")
    write_recipe("extends: base.yaml\nlora: {lora_alpha: 4}\n", "right.yaml")
    recipe = load_recipe(write_recipe("extends: [left.yaml, right.yaml]\n" + DATA))
    assert (recipe.model.base_model, recipe.lora.r, recipe.lora.lora_alpha) == ("base", 4, 4.0)


def test_a_circle_is_refused_with_its_chain(write_recipe):
    write_recipe("lora: {}\nextends: b.yaml\n", "a.yaml")
    write_recipe("\nextends: a.yaml\n", "b.yaml")
    path = write_recipe("extends: a.yaml\n" + DATA)
    (problem,) = problems_of(path)
    assert problem.place == "b.yaml:2"
    assert "recipe.yaml -> a.yaml -> b.yaml -> a.yaml" in problem.text


def test_a_fault_in_a_part_points_into_the_part(write_recipe):
    write_recipe("\n\nlora:\n  rr: 4\n  lora_alpha: x\n", "parts/lora.yaml")
    path = write_recipe("extends: parts/lora.yaml\nmodel: {base_model: b}\n" + DATA)
    assert [problem.place for problem in problems_of(path)] == ["parts/lora.yaml:4", "parts/lora.yaml:5"]


def test_a_conflict_points_to_the_file_that_holds_the_key(write_recipe):
    write_recipe("training:\n  save_steps: 5\n", "part.yaml")
    path = write_recipe("extends: part.yaml\nmodel: {base_model: b}\ntraining: {num_train_epochs: 1}\n" + DATA)
    (problem,) = problems_of(path)
    assert problem.place == "part.yaml:2"


def test_a_missing_part_names_its_neighbours(write_recipe):
    write_recipe("lora: {}\n", "parts/llama-8b.yaml")
    (problem,) = problems_of(write_recipe("\nextends: parts/lama-8b.yaml\n" + DATA))
    assert problem.place == "recipe.yaml:2"
    assert problem.hint == "did you mean 'parts/llama-8b.yaml'?"


def test_a_broken_part_is_the_only_thing_reported(write_recipe):
    write_recipe("model: [\n", "part.yaml")
    assert [problem.place for problem in problems_of(write_recipe("extends: part.yaml\n" + DATA))] == ["part.yaml:1"]
