"""What `qlora validate` finds on this machine: files, folders, and settings that a local base does not suit."""

from __future__ import annotations

import json

import pytest
import yaml

from qlora_cli.errors import RecipeError
from qlora_cli.recipe.local_checks import recipe_as_stored_here, unchecked
from qlora_cli.recipe.reader import check_recipe, load_recipe
from qlora_cli.recipe.schema import QuantizationSection


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base, data and a recipe on them; returns what checks the recipe with changed sections."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    base = tmp_path / "base"
    base.mkdir()
    write_config(base)
    (base / "tokenizer.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"")
    (tmp_path / "rows.jsonl").write_text('{"text": "Hello."}\n')

    def check(**sections):
        recipe = {"model": {"base_model": "./base"}, "data": {"train": "rows.jsonl", "max_length": 512}}
        for name, values in sections.items():
            recipe[name] = {**recipe.get(name, {}), **values}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        try:
            return check_recipe(tmp_path / "r.yaml")[1]
        except RecipeError as error:
            return error.problems

    check.folder = tmp_path
    return check


def write_config(folder, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 1024, **settings}))


def only(problems):
    [problem] = problems
    return problem


def test_what_is_whole_has_no_problem_and_no_note(place):
    assert place() == []


@pytest.mark.parametrize(
    ("sections", "line", "text", "hint"),
    [
        ({"data": {"train": "row.jsonl"}}, 4, "'data.train: row.jsonl' is not there", "did you mean 'rows.jsonl'"),
        ({"data": {"train": "no/rows.jsonl"}}, 4, "is not there", "folder 'no' does not exist"),
        ({"data": {"train": ["rows.jsonl", "b.csv"]}}, 6, "'data.train[1]: b.csv' is not there", "nothing of a like"),
        ({"data": {"eval": {"path": "b.jsonl"}}}, 7, "'data.eval.path: b.jsonl' is not there", ""),
        ({"data": {"train": "*.parquet"}}, 4, "matches no file", "paths start at"),
        ({"eval": {"tasks": [{"path": "b.jsonl"}]}}, 8, "'eval.tasks[0].path: b.jsonl' is not there", ""),
        ({"data": {"train": "empty.jsonl"}}, 4, "is empty", "at least one row"),
        ({"data": {"train": "bare"}}, 4, "a folder without a data file", "put files there"),
        ({"data": {"train": "./base/config.txt"}}, 4, "is not a kind of file that is read", "rename or convert"),
        (
            {"data": {"max_length": 2048}},
            5,
            "'data.max_length: 2048' is beyond the 1,024 positions",
            "max_length: 1024",
        ),
        ({"model": {"base_model": "./bas"}}, 2, "'model.base_model: ./bas' is not there", "did you mean 'base'?"),
        ({"model": {"base_model": "/no/base"}}, 2, "'model.base_model: /no/base' is not there", "a Hub id has"),
        ({"model": {"base_model": "rows.jsonl"}}, 2, "'model.base_model: rows.jsonl' is a file", "name the folder"),
        ({"model": {"base_model": "./bare"}}, 2, "holds no config.json", "name the folder that holds"),
        ({"model": {"base_model": "models/x"}}, 2, "'model.base_model: models/x' is not there", "paths start at"),
        ({"model": {"chat_template": "no.jinja"}}, 3, "'model.chat_template: no.jinja' is not there", "a Jinja file"),
    ],
)
def test_what_is_missing_is_said_at_its_key_with_a_way_on(place, sections, line, text, hint):
    (place.folder / "empty.jsonl").touch()
    (place.folder / "bare").mkdir()
    (place.folder / "models").mkdir()
    (place.folder / "base/config.txt").touch()
    problem = only(place(**sections))
    assert problem.place == f"{place.folder / 'r.yaml'}:{line}"
    assert text in problem.text
    assert hint in problem.hint


def test_all_that_is_wrong_is_said_at_once(place):
    problems = place(model={"base_model": "/no/base"}, data={"train": "a.jsonl", "eval": "b.jsonl"}, lora={"r": 0})
    assert [problem.place.rpartition(":")[2] for problem in problems] == ["2", "4", "6", "8"]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda base: (base / "config.json").write_text("{"), "has a config.json that is damaged"),
        (lambda base: (base / "config.json").write_text("[]"), "has a config.json that is no JSON object"),
        (lambda base: (base / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda base: (base / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "holds pickled weights only"),
        (
            lambda base: (base / "model.safetensors.index.json").write_text('{"weight_map": {"w": "b.safetensors"}}'),
            "lacks 'b.safetensors', which model.safetensors.index.json names",
        ),
        (
            lambda base: ((base / "config.json").unlink(), (base / "adapter_config.json").write_text("{}")),
            "is an adapter, not a base",
        ),
    ],
)
def test_a_base_folder_that_cannot_be_loaded_is_refused(place, spoil, text):
    spoil(place.folder / "base")
    assert text in only(place()).text


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("stored", "asked", "text"),
    [
        ({"quant_method": "gptq", "bits": 4}, {"quant_type": "nf4"}, "are stored in GPTQ in 4 bit, which cannot be"),
        ({"quant_method": "awq"}, None, "are stored in AWQ, which cannot be trained on here"),
        (BNB, {"quant_type": "int8"}, "'quantization.quant_type: int8' cannot be had"),
        ({"load_in_8bit": True}, {"quant_type": "nf4"}, "'model.base_model: ./base' are stored in int8"),
    ],
)
def test_a_base_that_is_quantized_already_is_held_against_the_recipe(place, stored, asked, text):
    write_config(place.folder / "base", quantization_config=stored)
    assert text in only(place(**({} if asked is None else {"quantization": asked}))).text


@pytest.mark.parametrize("asked", [None, {}, {"quant_type": "nf4"}])
def test_a_base_that_is_stored_as_the_recipe_asks_or_leaves_open_is_fine(place, asked):
    write_config(place.folder / "base", quantization_config=BNB)
    assert place(**({} if asked is None else {"quantization": asked})) == []


def test_what_is_shown_of_a_recipe_is_what_its_base_makes_of_it(place):
    write_config(place.folder / "base", quantization_config=BNB)
    place()
    recipe = load_recipe(place.folder / "r.yaml")
    assert recipe.quantization is None
    assert recipe_as_stored_here(recipe).quantization == QuantizationSection(double_quant=False)


def test_a_length_that_nobody_wrote_is_no_contradiction_but_said(place):
    (place.folder / "r.yaml").write_text("model: {base_model: ./base}\ndata: {train: rows.jsonl}\n")
    [note] = check_recipe(place.folder / "r.yaml")[1]
    assert "write `max_length: 1024`" in note


def test_positions_that_scaling_adds_count(place):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    write_config(place.folder / "base", rope_scaling=scaling)
    assert place(data={"max_length": 4096}) == []


def test_a_base_in_the_hubs_cache_is_looked_at_too(place):
    entry = place.folder / "hub/models--some-org--some-base"
    write_config(entry / "snapshots/abc")
    (entry / "refs").mkdir()
    (entry / "refs/main").write_text("abc")
    problem = only(place(model={"base_model": "some-org/some-base"}, data={"max_length": 2048}))
    assert "beyond the 1,024 positions" in problem.text


FILES = "hf://datasets/some/rows/*.parquet"


def test_what_only_the_hub_knows_is_named_and_no_problem(place):
    assert place(model={"base_model": "Qwen/Qwen3-8B"}, data={"train": ["rows.jsonl", "tatsu-lab/alpaca", FILES]}) == []
    recipe = load_recipe(place.folder / "r.yaml")
    assert unchecked(recipe) == ["model 'Qwen/Qwen3-8B'", "data 'tatsu-lab/alpaca'", f"data '{FILES}'"]
