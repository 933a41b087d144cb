"""Relative paths of a run's recipe are found from any directory and after the project has moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import write_manifest
from qlora_cli.run.origin import located, origin_of

RECIPE = Recipe.model_validate(
    {
        "name": "one",
        "model": {"base_model": "bases/tiny", "chat_template": "chat.jinja"},
        "data": {"train": [{"path": "data/train.jsonl"}, {"path": "org/on-the-hub"}], "eval": "data/held.jsonl"},
        "eval": {"tasks": [{"path": "data/task.jsonl"}]},
    }
)
FILES = ("bases/tiny/config.json", "chat.jinja", "data/train.jsonl", "data/held.jsonl", "data/task.jsonl")


def paths_of(recipe: Recipe) -> list[str]:
    model, data = recipe.model, recipe.data
    return [
        model.base_model, model.chat_template,
        *(each.path for each in (*data.train, *data.eval, *recipe.eval.tasks)),
    ]  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with everything that the recipe names, and a run that was started in it."""
    folder = tmp_path / "project"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    monkeypatch.chdir(folder)
    run = RunDirectory(Path("runs/one"))
    run.path.mkdir(parents=True)
    write_manifest(run, origin_of(run))
    return folder


def test_where_the_run_was_started_paths_stay_as_they_are(project):
    assert located(RECIPE, RunDirectory(Path("runs/one"))) == RECIPE


@pytest.mark.parametrize("has_moved", [False, True])
def test_from_elsewhere_paths_are_absolute_also_in_a_project_that_has_moved(project, tmp_path, monkeypatch, has_moved):
    monkeypatch.chdir(tmp_path)
    if has_moved:
        project = project.rename(tmp_path / "archive")
    found = paths_of(located(RECIPE, RunDirectory(project.relative_to(tmp_path) / "runs/one")))
    there = [str(project / name) for name in ("bases/tiny", *FILES[1:3])]
    assert found == [*there, "org/on-the-hub", *(str(project / name) for name in FILES[3:])]


def test_what_lies_here_comes_first(project, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert located(RECIPE, RunDirectory(project / "runs/one")).data.train[0].path == "data/train.jsonl"


@pytest.mark.parametrize("manifest", [None, {}, {"started_in": 3}, {"started_in": {"directory": 3, "run": []}}])
def test_without_a_record_nothing_is_changed(project, tmp_path, monkeypatch, manifest):
    run = RunDirectory(project / "runs/one")
    run.manifest_path.unlink()
    if manifest is not None:
        write_manifest(run, manifest)
    monkeypatch.chdir(tmp_path)
    assert located(RECIPE, run) == RECIPE
