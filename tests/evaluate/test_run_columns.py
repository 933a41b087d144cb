"""How the files that `qlora eval` is given are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_cli.errors import ArgumentError
from qlora_cli.evaluate.request import EvalRequest, prepare_tasks
from qlora_cli.evaluate.run_columns import parse_columns, read_like_the_run
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.eval_schema import TaskSection
from qlora_cli.recipe.schema import Recipe

ASKED = {"instruction": "question", "output": "answer"}


def recipe_with(**data):
    return Recipe.model_validate({"name": "r", "model": {"base_model": "b"}, "data": data})


@pytest.fixture
def file_with(tmp_path):
    def write(**row):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n")
        return SourceSection(path=str(path))

    return write


def test_a_file_with_the_runs_columns_is_read_as_the_runs_data(file_with):
    source = file_with(question="Hi", answer="Hello", id="1")
    read = read_like_the_run(source, recipe_with(train={"path": "t.jsonl", "columns": ASKED}))
    assert read == source.model_copy(update={"columns": ASKED})


def test_a_task_is_read_so_too(file_with):
    task = TaskSection(path=file_with(question="Hi", answer="Hello").path)
    assert read_like_the_run(task, recipe_with(train={"path": "t.jsonl", "columns": ASKED})).columns == ASKED


def test_of_several_sources_the_one_whose_columns_are_there_is_followed_and_held_out_ones_first(file_with):
    source = file_with(ask="Hi", say="Hello", question="Hi", answer="Hello")
    train = [{"path": "x", "columns": {"messages": "chat"}}, {"path": "y", "columns": ASKED}]
    assert read_like_the_run(source, recipe_with(train=train)).columns == ASKED
    held_out = {"path": "z", "columns": {"instruction": "ask", "output": "say"}}
    assert read_like_the_run(source, recipe_with(train=train, eval=held_out)).columns == held_out["columns"]


@pytest.mark.parametrize(
    "row", [{"instruction": "Hi", "output": "Hello"}, {"question": "Hi"}, {"messages": [], "answer": "Hello"}]
)
def test_a_file_with_other_columns_is_read_by_its_own(file_with, row):
    source = file_with(**row)
    assert read_like_the_run(source, recipe_with(train={"path": "t.jsonl", "columns": ASKED})) == source


def test_what_a_source_says_itself_stands(file_with):
    source = file_with(question="Hi", answer="Hello").model_copy(update={"columns": {"text": "answer"}})
    assert read_like_the_run(source, recipe_with(train={"path": "t.jsonl", "columns": ASKED})) == source


@pytest.mark.parametrize("text", ["answer", "output=", "=answer", "outptu=answer"])
def test_columns_that_are_none_are_refused(text):
    with pytest.raises(ArgumentError):
        parse_columns([text])


def test_a_recipes_own_task_with_the_columns_of_its_data_is_read_as_its_data(file_with):
    source = file_with(question="Hi", answer="Hello")
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"base_model": "b"},
            "data": {"train": {"path": "t.jsonl", "columns": ASKED}},
            "eval": {"tasks": [{"path": source.path}]},
        }
    )
    tuned = TunedSource(Path("runs/r"), recipe.model, recipe=recipe)
    tasks, _ = prepare_tasks(tuned, EvalRequest())
    assert next(task.name for task in tasks) == "rows"
