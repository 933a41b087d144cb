"""The JSON Schema accepts what the reader accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from qlora_cli.recipe.json_schema import all_keys, field_at, options_of, recipe_json_schema
from qlora_cli.recipe.yaml_text import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def is_accepted(text):
    return Draft202012Validator(recipe_json_schema()).is_valid(parse_yaml(text, "a.yaml").root.plain())


def test_it_is_a_valid_schema_of_its_dialect():
    Draft202012Validator.check_schema(recipe_json_schema())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_accepted(path):
    assert is_accepted(path.read_text("utf-8"))


@pytest.mark.parametrize("train", ["a.jsonl", "{path: a}", "[a, {path: b, weight: 2}]"])
def test_the_short_forms_of_a_source_are_accepted(train):
    assert is_accepted(f"model: {{base_model: b}}\ndata: {{train: {train}, eval: {train}}}\n")


@pytest.mark.parametrize(
    "text",
    [
        "model: {base_model: b}\n",
        "model: {}\ndata: {train: a}\n",
        "model: {base_model: b}\ndata: {train: []}\n",
        "model: {base_model: b}\ndata: {train: a}\nlora: {rr: 1}\n",
        "model: {base_model: b}\ndata: {train: a}\nlora: {r: 0}\n",
        "extends: 3\n",
    ],
)
def test_what_the_reader_refuses_is_refused(text):
    assert not is_accepted(text)


def test_what_a_part_may_bring_is_not_asked_for_twice():
    assert is_accepted("extends: [configs/models/qwen3-8b.yaml]\nmodel: {dtype: auto}\ndata: {train: a}\n")


def test_every_key_has_a_sentence():
    for key in all_keys():
        field = field_at(key.split("."))
        assert any("description" in one for one in (field, *options_of(field))), key


def test_every_number_has_a_lower_bound_and_an_upper_one():
    for key in all_keys():
        for option in options_of(field_at(key.split("."))):
            if option.get("type") in ("integer", "number") and "enum" not in option:
                assert {"minimum", "exclusiveMinimum"} & set(option), key
                assert {"maximum", "exclusiveMaximum"} & set(option), key
