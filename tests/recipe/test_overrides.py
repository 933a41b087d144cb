"""`--set a.b=c`."""

from __future__ import annotations

import pytest

from qlora_cli.errors import RecipeError
from qlora_cli.recipe.reader import load_recipe

MINIMAL = "model: {base_model: some/base}\ndata: {train: rows.jsonl}\n"


def test_values_are_read_as_yaml_and_later_ones_win(write_recipe):
    path = write_recipe(MINIMAL + "lora: {r: 4}\n")
    overrides = ["lora.r=8", "lora.r=32", "training.learning_rate=1e-4", "lora.target_modules=[q_proj]"]
    recipe = load_recipe(path, overrides)
    assert (recipe.lora.r, recipe.training.learning_rate) == (32, 1e-4)
    assert recipe.lora.target_modules == ("q_proj",)


def test_null_takes_a_section_away(write_recipe):
    path = write_recipe(MINIMAL + "quantization: {quant_type: nf4}\n")
    assert load_recipe(path, ["quantization=null"]).quantization is None


def test_a_value_may_hold_an_equals_sign(write_recipe):
    assert load_recipe(write_recipe(MINIMAL), ["data.train=a=b.jsonl"]).data.train[0].path == "a=b.jsonl"


@pytest.mark.parametrize(
    ("override", "fragment", "hint"),
    [
        ("lora.lora_alfa=3", "unknown key 'lora.lora_alfa'", "'lora.lora_alpha'"),
        ("lora.rr=3", "unknown key 'lora.rr'", "did you mean 'lora.r'?"),
        ("lora.r=sixteen", "lora.r must be a whole number", "default, 16"),
        ("lora.r", "this is not `key=value`", "--set training.learning_rate=1e-4"),
        ("=3", "this is not `key=value`", "--set"),
        ("lora..r=3", "this is not `key=value`", "--set"),
        ("lora.r=", "'lora.r' has no value", "lora.r=null"),
        ("lora.r=[1", "this is not YAML", ""),
        ("extends=a.yaml", "'extends' belongs in the file", "set the keys themselves"),
        ("lora.r=!!python/none ''", "tag '!!python/none' is not allowed", ""),
    ],
)
def test_a_fault_is_placed_at_the_option(write_recipe, override, fragment, hint):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(MINIMAL), [override])
    (problem,) = caught.value.problems
    assert problem.place == f"--set {override}"
    assert fragment in problem.text
    assert hint in problem.hint
