"""The demo's data are found from any directory, in whichever form a recipe names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_cli.errors import RecipeError
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.shipped_data import shipped_data

ROOT = Path(__file__).resolve().parents[2]
TRAIN, TEST = "recipes/data/tickets_train.jsonl", "recipes/data/tickets_test.jsonl"


def paths(sources):
    return [source.path for source in sources]


@pytest.mark.parametrize(
    "written", [TRAIN, f"./{TRAIN}", f"{{path: {TRAIN}}}", f"[{TRAIN}]", f"[{{path: {TRAIN}, weight: 2}}]"]
)
def test_every_form_of_a_source_is_found(write_recipe, written):
    recipe = load_recipe(write_recipe(f"model: {{base_model: b}}\ndata: {{train: {written}}}\n"))
    assert paths(recipe.data.train) == [str(ROOT / TRAIN)]


def test_held_out_rows_and_tasks_are_found_too(write_recipe):
    text = f"model: {{base_model: b}}\ndata: {{train: {TRAIN}, eval: {TEST}}}\neval: {{tasks: [{{path: {TEST}}}]}}\n"
    recipe = load_recipe(write_recipe(text))
    assert paths(recipe.data.eval) == paths(recipe.eval.tasks) == [str(ROOT / TEST)]


def test_what_is_here_is_taken(write_recipe, tmp_path):
    (tmp_path / "recipes" / "data").mkdir(parents=True)
    (tmp_path / TRAIN).write_text("mine")
    recipe = load_recipe(write_recipe(f"model: {{base_model: b}}\ndata: {{train: {TRAIN}}}\n"))
    assert paths(recipe.data.train) == [TRAIN]


def test_a_link_that_leads_nowhere_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "data").mkdir(parents=True)
    (tmp_path / TRAIN).symlink_to("gone")
    assert shipped_data(Path(TRAIN)) is None


@pytest.mark.parametrize(
    "path",
    ["tickets_train.jsonl", "recipes/smoke.yaml", "data/tickets_train.jsonl", f"x/{TRAIN}", f"/{TRAIN}", "recipes/data",
     "recipes/data/mine.jsonl", "recipes/data/../data/tickets_train.jsonl", "recipes/data/..", "Qwen/Qwen3-8B", ""],
)  # fmt: skip
def test_no_other_path_is_touched(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert shipped_data(Path(path)) is None


def test_values_of_a_wrong_kind_are_left_to_the_schema(write_recipe):
    path = write_recipe("model: {base_model: b}\ndata: {train: [[1], {path: 2}, null]}\neval: {tasks: 3}\n")
    with pytest.raises(RecipeError, match=r"data\.train"):
        load_recipe(path)
