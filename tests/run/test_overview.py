"""The table of runs shows how far each got, whatever is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_cli.run.claim import claimed
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import write_manifest
from qlora_cli.run.metrics import append_metrics
from qlora_cli.run.overview import overview

MANIFEST = {"status": "finished", "base": {"base_model": "org/base"}, "started_at": "2026-01-02T03:04:05Z"}


def start(folder: Path, name: str, *lines: dict, manifest: dict | None = None, changed_at: float = 100.0) -> None:
    run = RunDirectory(folder / name)
    run.path.mkdir()
    run.recipe_path.write_text("name: x\n")
    if manifest is not None:
        write_manifest(run, manifest)
    for line in lines:
        append_metrics(run.metrics_path, line)
    for path in run.path.iterdir():
        os.utime(path, (changed_at, changed_at))


def test_a_run_shows_its_last_step_and_its_last_losses(tmp_path):
    start(
        tmp_path,
        "run",
        {"step": 1, "loss": 3.0},
        {"step": 1, "eval_loss": 3.1},
        {"step": 2, "loss": 2.5},
        {"step": 2, "eval_loss": 2.9},
        manifest=MANIFEST,
    )
    [row] = overview(tmp_path)
    assert (row.num_steps, row.loss, row.eval_loss) == (2, 2.5, 2.9)
    assert row.cells() == (
        str(tmp_path / "run"),
        "finished",
        "2",
        "2.5000",
        "2.9000",
        "",
        "01-02 03:04",
    )


def test_a_run_that_ended_before_its_first_step_has_empty_losses(tmp_path):
    start(tmp_path, "run", manifest={**MANIFEST, "status": "started"})
    [row] = overview(tmp_path)
    assert (row.status, row.num_steps, row.loss, row.eval_loss) == ("died", 0, None, None)
    assert row.cells()[2:5] == ("0", "", "")


def test_a_run_without_a_manifest_is_listed_as_not_started(tmp_path):
    start(tmp_path, "run")
    [row] = overview(tmp_path)
    assert (row.status, row.base_model, row.started_at) == ("not started", "", "")


def test_a_loss_that_was_not_finite_is_shown_as_empty(tmp_path):
    start(tmp_path, "run", {"step": 1, "loss": float("nan")}, manifest=MANIFEST)
    assert overview(tmp_path)[0].cells()[3] == ""


def test_the_latest_run_comes_first_and_other_folders_do_not_count(tmp_path):
    start(tmp_path, "old", changed_at=100.0)
    start(tmp_path, "new", changed_at=200.0)
    (tmp_path / "notes").mkdir()
    assert [Path(row.run).name for row in overview(tmp_path)] == ["new", "old"]


def test_without_a_folder_there_are_no_runs(tmp_path):
    assert overview(tmp_path / "runs") == []


def test_a_row_as_json_has_every_value(tmp_path):
    start(tmp_path, "run", {"step": 3, "loss": 1.5}, manifest=MANIFEST)
    assert overview(tmp_path)[0].as_dict() == {
        "run": str(tmp_path / "run"),
        "status": "finished",
        "base_model": "org/base",
        "num_steps": 3,
        "loss": 1.5,
        "eval_loss": None,
        "started_at": "2026-01-02T03:04:05Z",
        "best_eval_loss": None,
        "best_step": None,
        "seconds": None,
        "max_steps": None,
        "process": None,
    }


def test_a_run_that_goes_on_is_told_from_one_that_died(tmp_path):
    start(tmp_path, "run", {"step": 12, "loss": 1.5}, manifest={**MANIFEST, "status": "started", "max_steps": 100})
    with claimed(RunDirectory(tmp_path / "run")):
        [live] = overview(tmp_path)
    assert live.cells()[1:3] == (f"training, process {os.getpid()}", "12/100")
    assert (live.process, live.max_steps) == (str(os.getpid()), 100)
    [dead] = overview(tmp_path)
    assert dead.cells()[1:3] == ("died", "12/100")


def test_a_finished_run_that_is_trained_again_is_being_prepared_until_it_starts(tmp_path):
    start(tmp_path, "run", manifest=MANIFEST)
    with claimed(RunDirectory(tmp_path / "run")):
        assert overview(tmp_path)[0].status == "preparing"
    assert overview(tmp_path)[0].status == "finished"


def test_the_best_eval_loss_is_the_lowest_and_the_time_is_that_of_all_sessions(tmp_path):
    losses = enumerate((3.0, 2.0, 2.0, float("nan"), 2.5), start=1)
    lines = [{"step": step, "eval_loss": loss} for step, loss in losses]
    start(tmp_path, "run", *lines, manifest={**MANIFEST, "seconds": 3723.4})
    [row] = overview(tmp_path)
    assert (row.best_eval_loss, row.best_step, row.seconds) == (2.0, 2, 3723.4)
    assert row.cells()[-3:] == ("2.0000", "1:02:03", "01-02 03:04")


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("latest", ["c", "b", "a"]),
        ("name", ["a", "b", "c"]),
        ("eval", ["b", "a", "c"]),
        ("loss", ["a", "c", "b"]),
        ("steps", ["a", "c", "b"]),
        ("time", ["b", "c", "a"]),
    ],
)
def test_runs_are_sorted_and_those_without_the_figure_come_last(tmp_path, order, names):
    start(tmp_path, "a", {"step": 9, "loss": 1.0, "eval_loss": 2.0}, manifest=MANIFEST, changed_at=100)
    start(tmp_path, "b", {"step": 3, "eval_loss": 1.0}, manifest={**MANIFEST, "seconds": 1}, changed_at=200)
    start(tmp_path, "c", {"step": 4, "loss": 2.0}, manifest={**MANIFEST, "seconds": 2}, changed_at=300)
    assert [Path(row.run).name for row in overview(tmp_path, order=order)] == names
