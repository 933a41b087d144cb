"""The run directory: one writer, the latest run, nothing deleted by accident."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_cli.errors import ArgumentError, RunInUseError
from qlora_cli.run.claim import claimed, mark
from qlora_cli.run.directory import RunDirectory, latest_run, list_runs, run_hint
from tests.run.leftovers import half_written_file, half_written_folder


def start(folder: Path, name: str, changed_at: float) -> RunDirectory:
    run = RunDirectory(folder / name)
    run.path.mkdir(parents=True)
    mark(run)
    run.recipe_path.write_text("name: x\n")
    os.utime(run.recipe_path, (changed_at, changed_at))
    return run


@pytest.mark.slow
def test_a_second_writer_is_refused_with_the_holders_process_id(tmp_path):
    run = RunDirectory(tmp_path / "run")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib, time\nfrom qlora_cli.run.claim import claimed\n"
            "from qlora_cli.run.directory import RunDirectory\n"
            "with claimed(RunDirectory(pathlib.Path(sys.argv[1]))):\n print('held', flush=True); time.sleep(60)",
            str(run.path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunInUseError, match=f"process {holder.pid} ") as caught, claimed(run):
            pass
        assert caught.value.exit_code == 6
    finally:
        holder.kill()
        holder.wait()
    with claimed(run):  # a dead process holds nothing
        pass


def test_the_latest_run_is_the_one_that_changed_last(tmp_path):
    start(tmp_path, "first", 100.0)
    second = start(tmp_path, "second", 200.0)
    (tmp_path / "no-run").mkdir()
    assert latest_run(tmp_path) == second
    assert [run.path.name for run in list_runs(tmp_path)] == ["second", "first"]


def test_no_run_at_all_says_how_to_make_one(tmp_path):
    with pytest.raises(ArgumentError, match="there is no run") as caught:
        latest_run(tmp_path / "runs")
    assert "qlora train" in caught.value.problems[0].hint


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", ".lock", "checkpoints", "checkpoints/step-000002"])
def test_a_run_whose_links_lead_out_of_it_is_refused(tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    entry = tmp_path / "run" / name
    entry.parent.mkdir(parents=True)
    entry.symlink_to(outside)
    with pytest.raises(ArgumentError, match="is a link to"), claimed(RunDirectory(tmp_path / "run")):
        pass
    assert list(outside.iterdir()) == []


def test_the_run_directory_itself_may_be_a_link(tmp_path):
    (tmp_path / "other-disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "other-disk")
    with claimed(RunDirectory(tmp_path / "run")):
        assert (tmp_path / "other-disk" / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ArgumentError, match="cannot be a run directory"), claimed(RunDirectory(path)):
            pass


def test_whoever_claims_a_run_deletes_what_a_killed_process_left_half_done_and_nothing_else(tmp_path):
    run = start(tmp_path, "run", 100.0)
    merge = half_written_folder(run.merged_path)
    for kind in ("staging", "retired"):
        half_written_folder(run.adapter_path, kind)
    half_written_file(run.manifest_path)
    (run.path / ".adapter.staging-1").mkdir()
    (run.path / ".adapter.staging-1" / "thesis.txt").write_text("years of work")
    with claimed(run):
        names = sorted(path.name for path in run.path.iterdir())
    assert names == [".adapter.staging-1", ".lock", merge.name, "manifest.json", "recipe.yaml"]
    assert (run.path / ".adapter.staging-1" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "thesis.txt", "src/a.py", "manifest.json", "adapter/weights", ".earlier/a"]
)
def test_a_folder_that_holds_something_else_is_no_run_directory(tmp_path, name):
    path = tmp_path / "project" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(ArgumentError, match="not empty") as caught, claimed(RunDirectory(tmp_path / "project")):
        pass
    assert "--run-dir" in caught.value.problems[0].hint
    assert [entry for entry in (tmp_path / "project").rglob("*") if entry.is_file()] == [path]


def test_the_current_directory_its_parents_home_and_a_git_work_tree_are_never_run_directories(tmp_path, monkeypatch):
    here, home, tree = tmp_path / "outer" / "here", tmp_path / "home", tmp_path / "tree"
    for folder in (here, home, tree / ".git"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    for path, problem in (
        (Path("."), "is the current directory"),
        (Path(".."), "holds the current directory"),
        (Path("/"), "holds the current directory"),
        (home, "is the home directory"),
        (tree, "is a git work tree"),
    ):
        with pytest.raises(ArgumentError, match=problem), claimed(RunDirectory(path)):
            pass
    assert [list(folder.iterdir()) for folder in (here, home)] == [[], []]


def test_a_directory_that_was_claimed_and_never_used_can_be_claimed_again(tmp_path):
    with claimed(RunDirectory(tmp_path / "run")):
        pass
    (tmp_path / "run" / "manifest.json").unlink()
    half_written_file(tmp_path / "run" / "manifest.json")  # killed while it was claimed
    with claimed(RunDirectory(tmp_path / "run")) as run:
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", "manifest.json"]


def test_a_run_that_is_named_without_its_folder_is_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "chat"
    run.mkdir(parents=True)
    (run / "recipe.yaml").touch()
    assert run_hint(Path("chat")) == "did you mean runs/chat?"
    assert run_hint(Path("talk"), "look again") == "look again"
