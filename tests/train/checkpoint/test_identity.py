"""The manifest distinguishes base, tokenizer, template and data: a change of one changes one fingerprint."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.run.manifest import LIBRARIES
from qlora_cli.train.checkpoint.identity import environment_info, run_identity


@pytest.fixture
def base(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


def fingerprints(recipe, add_token: str = "", template: str = "") -> dict[str, str]:
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare_data(recipe.data, Renderer(tokenizer), recipe.training.seed)
    if add_token:
        tokenizer.add_tokens([add_token])
    tokenizer.chat_template += template
    facts = run_identity(recipe, prepared, tokenizer)
    return {section: values["fingerprint"] for section, values in facts.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys() == {"base", "tokenizer", "template", "data"}
    return {section for section in before if before[section] != after[section]}


def test_the_same_recipe_stands_on_the_same_ground(small_recipe):
    assert changed(fingerprints(small_recipe()), fingerprints(small_recipe())) == set()


def test_a_base_that_moved_is_the_same_base(small_recipe, base):
    assert changed(fingerprints(small_recipe()), fingerprints(small_recipe(model={"base_model": str(base)}))) == set()


def test_one_weight_makes_another_base(small_recipe, base):
    recipe = small_recipe(model={"base_model": str(base)})
    before = fingerprints(recipe)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert changed(before, fingerprints(recipe)) == {"base"}


def test_a_token_more_makes_another_tokenizer(small_recipe):
    assert changed(fingerprints(small_recipe()), fingerprints(small_recipe(), add_token="<|new|>")) == {"tokenizer"}


def test_another_template_is_another_template(small_recipe):
    assert changed(fingerprints(small_recipe()), fingerprints(small_recipe(), template=" ")) == {"template"}


@pytest.mark.parametrize("sections", [{"training": {"seed": 7}}, {"data": {"eval_fraction": 0.2}}], ids=str)
def test_another_split_is_other_data(small_recipe, sections):
    assert changed(fingerprints(small_recipe()), fingerprints(small_recipe(**sections))) == {"data"}


def test_how_rows_are_counted_and_where_the_base_came_from_is_written_down(small_recipe, tiny_base):
    recipe = small_recipe()
    tokenizer = load_tokenizer(recipe.model)
    facts = run_identity(recipe, prepare_data(recipe.data, Renderer(tokenizer), 42), tokenizer)
    assert (facts["data"]["num_train_rows"], facts["data"]["num_eval_rows"]) == (43, 5)
    assert facts["base"]["base_model"] == str(tiny_base)


def test_the_circumstances_are_json_and_name_versions_dtype_and_seed(small_recipe):
    found = environment_info(small_recipe(model={"dtype": "bfloat16"}, training={"seed": 7}))
    assert json.loads(json.dumps(found)) == found
    assert set(LIBRARIES) <= found["versions"].keys()
    assert (found["dtype"], found["seed"], found["hardware"]["device"]) == ("bfloat16", 7, "cpu")
