"""Every recipe and every part that comes with qlora works, and says for whom it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qlora_cli.errors import ArgumentError, RecipeError
from qlora_cli.recipe.json_schema import field_at
from qlora_cli.recipe.reader import dump_recipe, load_recipe
from qlora_cli.recipe.shipped import find_shipped, list_shipped, recipe_file, shipped_root
from qlora_cli.recipe.yaml_text import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PARTS = sorted((ROOT / "configs").rglob("*.yaml"))
EXPECTED = {
    "dialogpt-medium-chatbot",
    "guanaco",
    "high-rank-48gb",
    "llama-2-7b-8gb",
    "llama-3.1-70b-80gb",
    "llama-3.1-8b-24gb",
    "mistral-7b-16gb",
    "qwen3-8b-12gb",
}


def test_no_shipped_recipe_is_missed():
    assert {path.stem for path in RECIPES} >= EXPECTED
    assert [recipe.path.name for recipe in list_shipped()] == [path.name for path in RECIPES]


@pytest.mark.slow
def test_the_recipes_tested_are_those_in_git():
    listed = subprocess.run(
        ["git", "ls-files", "recipes/*.yaml"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert set(listed.stdout.split()) <= {f"recipes/{path.name}" for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_its_dump_loads_back_equal(path, tmp_path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_recipe(recipe), "utf-8")
    assert load_recipe(dumped) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_short(path):
    assert len(path.read_text("utf-8").splitlines()) <= 60


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_shipped_recipe_says_purpose_hardware_time_and_result(name):
    recipe = find_shipped(name)
    assert recipe.purpose
    assert "GB" in recipe.hardware
    assert "min" in recipe.time
    assert "estimate" in recipe.time or "measured" in recipe.time
    assert recipe.expected


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_copy_of_a_shipped_recipe_works_in_any_folder(name, tmp_path):
    copy = tmp_path / f"{name}.yaml"
    copy.write_bytes(find_shipped(name).path.read_bytes())
    assert load_recipe(copy) == load_recipe(find_shipped(name).path)


@pytest.mark.parametrize("path", PARTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_part_holds_known_keys_only_and_loads_in_a_recipe(path, tmp_path):
    part = parse_yaml(path.read_text("utf-8"), path.name).root.plain()
    for section, settings in part.items():
        for key in settings:
            assert field_at((section, key)), f"{section}.{key}"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {base_model: some/base}\ndata: {train: rows.jsonl}\n", "utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: [recipe.yaml, '{path}']\n", "utf-8")
    load_recipe(own)


def test_there_are_parts_for_models_hardware_and_lora():
    assert {path.parent.name for path in PARTS} >= {"models", "hardware", "lora"}
    assert len(PARTS) >= 16


def test_guanaco_has_the_settings_of_the_paper():
    recipe = load_recipe(find_shipped("guanaco").path)
    training, lora = recipe.training, recipe.lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (64, 16, 0.1, "all-linear")
    assert (training.learning_rate, training.max_steps, training.max_grad_norm) == (2e-4, 1875, 0.3)
    assert (training.adam_beta2, training.weight_decay, training.optim) == (0.999, 0, "paged_adamw_32bit")
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    assert training.lr_scheduler_type == "constant"


def test_the_shipped_folder_of_a_checkout_is_the_checkout():
    assert shipped_root() == ROOT


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ArgumentError) as caught:
        find_shipped("lama")
    assert "guanaco" in caught.value.problems[0].hint


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bare_name_is_the_shipped_recipe_where_there_is_no_such_file(here, capsys):
    assert load_recipe(Path("guanaco")) == load_recipe(ROOT / "recipes" / "guanaco.yaml")
    assert f"comes with qlora: {ROOT / 'recipes' / 'guanaco.yaml'}" in capsys.readouterr().err


def test_a_folder_of_that_name_is_no_recipe(here):
    (here / "guanaco").mkdir()
    assert load_recipe(Path("guanaco")).name == "guanaco"


def test_a_file_of_that_name_wins(here):
    (here / "guanaco").write_text("model: {base_model: mine}\ndata: {train: rows.jsonl}\n")
    assert load_recipe(Path("guanaco")).model.base_model == "mine"


@pytest.mark.parametrize("given", ["./folder/guanaco", "guanaco.yaml", "/nowhere/guanaco", "folder/guanaco.yaml"])
def test_a_path_is_never_a_shipped_recipe_and_the_hint_names_it(here, given):
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path(given))
    assert caught.value.problems[0].hint == "`guanaco` alone names the recipe that comes with qlora"


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_an_edited_copy_is_not_passed_over_for_the_shipped_recipe(here, suffix):
    (here / f"smoke.{suffix}").write_text("")
    with pytest.raises(ArgumentError) as caught:
        recipe_file(Path("smoke"))
    assert f"smoke.{suffix} or {ROOT / 'recipes' / 'smoke.yaml'}" in caught.value.problems[0].hint


def test_a_file_like_the_missing_one_is_named_before_a_shipped_recipe(here):
    (here / "smok.yaml").write_text("")
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path("smoke.yaml"))
    assert caught.value.problems[0].hint == "did you mean 'smok.yaml'?"
