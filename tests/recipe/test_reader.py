"""Recipes read from YAML: values, places, hints, and the way back to YAML."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_cli.errors import RecipeError
from qlora_cli.recipe.reader import dump_recipe, load_recipe
from qlora_cli.recipe.schema import Recipe
from qlora_cli.recipe.yaml_text import parse_yaml
from tests.recipe.malformed import MALFORMED

NEEDS_ANOTHER = {"stopping_strategy", "early_stopping_threshold"}
"""Keys whose default would be refused beside the defaults of others."""

MINIMAL = "model: {base_model: some/base}\ndata: {train: rows.jsonl}\n"


def problems_of(path, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.problems


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_recipe_gives_one_problem_with_its_place_and_a_hint(write_recipe, case):
    text, line, fragment, hint = MALFORMED[case]
    (problem,) = problems_of(write_recipe(text))
    assert problem.place == f"recipe.yaml:{line}"
    assert fragment in problem.text
    assert hint in problem.hint
    assert "\n" not in problem.text + problem.hint


def test_the_table_of_malformed_recipes_is_long_enough():
    assert len(MALFORMED) >= 40


def test_every_problem_is_reported_at_once_in_the_order_of_lines(write_recipe):
    text = (
        "name: bad name\n"
        "model: {}\n"
        "data: {train: a.jsonl, eval: b.jsonl, eval_fraction: 0.1}\n"
        "lora:\n"
        "  r: 0\n"
        "  r: none\n"
        "  rank: 3\n"
        "training:\n"
        "  max_steps: 4\n"
        "  num_train_epochs: 1\n"
        "  optim: sgd\n"
    )
    places = [problem.place for problem in problems_of(write_recipe(text))]
    assert places == [f"recipe.yaml:{line}" for line in (1, 2, 3, 6, 6, 7, 9, 11)]


def test_a_faulty_value_is_not_blamed_a_second_time_by_a_rule(write_recipe):
    text = MINIMAL + "eval: {eval_strategy: step, eval_steps: 4}\n"
    (problem,) = problems_of(write_recipe(text))
    assert "eval.eval_strategy cannot be 'step'" in problem.text


def test_the_name_is_the_file_stem(write_recipe):
    assert load_recipe(write_recipe(MINIMAL, "chat-v1.2.yaml")).name == "chat-v1.2"


def test_a_file_stem_that_cannot_be_a_name_is_refused(write_recipe):
    (problem,) = problems_of(write_recipe(MINIMAL, "my recipe.yaml"))
    assert problem.place == "my recipe.yaml:1"
    assert "add `name:`" in problem.hint


@pytest.mark.parametrize("short", ["a.jsonl", "{path: a.jsonl}", "[a.jsonl]", "[{path: a.jsonl}]"])
def test_each_short_form_of_a_source_means_the_same(write_recipe, short):
    path = write_recipe(f"model: {{base_model: b}}\ndata: {{train: {short}}}\n")
    assert [source.path for source in load_recipe(path).data.train] == ["a.jsonl"]


def test_a_byte_order_mark_and_windows_line_ends_are_read(write_recipe):
    assert load_recipe(write_recipe(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())).name == "recipe"


def test_a_missing_recipe_names_its_neighbours(write_recipe):
    write_recipe(MINIMAL, "chat-8b.yaml")
    (problem,) = problems_of(Path("chat8b.yaml"))
    assert problem.place == "chat8b.yaml"
    assert problem.hint == "did you mean 'chat-8b.yaml'?"


def test_a_folder_is_no_recipe(write_recipe):
    write_recipe(MINIMAL, "chats/a.yaml")
    assert "is a folder" in problems_of(Path("chats"))[0].text


def test_a_data_file_is_not_read_as_a_recipe(write_recipe):
    path = write_recipe("# row\n" * 400_000)
    assert "2,400,000 bytes" in problems_of(path)[0].text


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_recipe_without_read_permission_is_one_problem(write_recipe):
    path = write_recipe(MINIMAL)
    path.chmod(0)
    assert "cannot be read" in problems_of(path)[0].text


def test_a_dumped_recipe_writes_every_default_out(write_recipe):
    recipe = load_recipe(write_recipe(MINIMAL))
    dumped = parse_yaml(dump_recipe(recipe), "dump.yaml").root.plain()
    for section in ("model", "lora", "data", "training", "eval", "tracking"):
        settings = getattr(recipe, section).model_dump(exclude_none=True)
        assert set(dumped[section]) == set(settings) - NEEDS_ANOTHER
    assert dumped["training"]["learning_rate"] == 2e-4


@pytest.mark.parametrize(
    "text",
    [
        "name: '1e5'\nmodel: {base_model: '2e-4', revision: 'null'}\ndata: {train: 'on'}\n",
        MINIMAL + "training: {lr_scheduler_type: constant, learning_rate: 1e-7}\n",
        MINIMAL + "quantization: {quant_type: int8}\n",
        MINIMAL + "training: {save_strategy: steps, save_steps: 5, max_steps: 7}\n",
        "model: {base_model: 'ö # : \" ñ \\u0085'}\ndata: {train: [{path: a, columns: {'<<': '~', 'a b': 'x: y'}}]}\n",
    ],
)
def test_a_dumped_recipe_loads_back_equal(write_recipe, text):
    recipe = load_recipe(write_recipe(text))
    assert load_recipe(write_recipe(dump_recipe(recipe), "again.yaml")) == recipe


def test_a_recipe_built_against_the_rules_is_not_dumped():
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"base_model": "b"},
            "data": {"train": "a.jsonl"},
            "training": {"max_steps": 1, "num_train_epochs": 1},
        }
    )
    with pytest.raises(ValueError, match="contradict"):
        dump_recipe(recipe)
