"""A mapping says what the YAML file would say."""

from __future__ import annotations

from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from transformers.trainer_utils import SchedulerType

from qlora_cli.recipe.mapping import tree_of
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.tree import RecipePlace

HERE = RecipePlace("recipe", 0)


class Plain(Enum):
    A = 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (True, True),
        (None, None),
        (Path("a/b"), "a/b"),
        (SchedulerType.COSINE, "cosine"),
        (np.int64(8), 8),
        (np.float32(0.5), 0.5),
        (Fraction(1, 2), 0.5),
        ((1, "x"), [1, "x"]),
        (MappingProxyType({"a": 1}), {"a": 1}),
    ],
    ids=str,
)
def test_a_value_is_what_yaml_would_make_of_it(value, plain):
    tree, problems = tree_of({"key": value}, HERE)
    assert problems == []
    assert tree.plain() == {"key": plain}
    assert type(tree.plain()["key"]) is type(plain)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, b"text", Plain.A, np.bool_(True), np.zeros(2)], ids=lambda value: type(value).__name__
)
def test_another_value_is_named_with_its_key_and_type(value):
    _, [(place, problem)] = tree_of({"lora": {"r": [4, value]}}, HERE)
    assert place == HERE
    assert problem.text.startswith("'lora.r[1]' is of the type ")
    assert type(value).__qualname__ in problem.text


def test_parts_are_found_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("part.yaml").write_text("lora: {r: 4, lora_alpha: 8}\n")
    recipe = load_recipe(
        {"extends": "part.yaml", "model": {"base_model": "base"}, "data": {"train": "rows.jsonl"}, "lora": {"r": 2}}
    )
    assert (recipe.name, recipe.lora.r, recipe.lora.lora_alpha) == ("recipe", 2, 8)


def test_the_home_directory_may_be_written_as_a_tilde_in_the_name_of_the_base(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe({"name": "a", "model": {"base_model": "~/base"}, "data": {"train": "rows.jsonl"}})
    assert recipe.model.base_model == f"{tmp_path}/base"
