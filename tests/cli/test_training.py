"""`qlora train` through the real command line: results, refusals, exit codes, signals."""

from __future__ import annotations

import io
import json
import re
import signal
import time

import pytest
from rich.console import Console

from qlora_cli import console
from qlora_cli.run.checkpoints import list_checkpoints
from qlora_cli.run.claim import claimed
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train import session

pytestmark = pytest.mark.slow


def test_json_is_all_that_stdout_holds_and_the_notes_go_to_stderr(call, recipe_file):
    ran = call("train", recipe_file, "--json")
    assert ran.code == 0
    result = ran.json
    assert (result["run"], result["num_steps"], result["max_steps"]) == ("runs/small", 4, 4)
    assert result["is_finished"] is True
    assert result["loss"] == read_metrics(RunDirectory(recipe_file.parent / "runs/small").metrics_path)[3]["loss"]
    for note in ("43 rows to train on, 5 held out", "⟦1<|im_end|>", "trained parameters", "step 4/4", "eval loss"):
        assert note in ran.err


def test_without_json_a_person_reads_the_loss_and_where_the_adapter_is(call, recipe_file, tmp_path):
    ran = call("train", recipe_file, "--run-dir", "elsewhere")
    first, second = ran.out.splitlines()
    steps, measured = first.split(": ")
    assert re.fullmatch(r"4 steps in \d+ s, 4 of 4 are done", steps)
    assert re.fullmatch(r"loss \d\.\d{4}, eval loss \d\.\d{4}, peak memory \d+\.\d GiB", measured)
    assert second == "adapter: elsewhere/adapter"
    assert (tmp_path / "elsewhere/adapter/adapter_config.json").is_file()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("environment", "has_colour"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_trained_tokens_of_the_first_row_are_marked_on_every_kind_of_terminal(
    call, recipe_file, monkeypatch, environment, has_colour
):
    screen = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=screen, force_terminal=True, soft_wrap=True, _environ=environment))
    call("train", recipe_file, "--set", "training.max_steps=1")
    shown = screen.getvalue()
    assert ("trained tokens in green:" in shown) == has_colour
    assert ("trained tokens between ⟦ and ⟧:" in shown) == (not has_colour)
    assert ("⟦1" in shown) == (not has_colour)
    assert ("\x1b[2K" in shown) == (environment["TERM"] != "dumb")  # a bar, or lines
    assert ("step 1/1  loss" in shown) == (environment["TERM"] == "dumb")


def test_set_overrides_a_key(call, recipe_file):
    ran = call("train", recipe_file, "--set", "training.max_steps=1", "--set", "name=other", "--json")
    assert (ran.json["run"], ran.json["max_steps"]) == ("runs/other", 1)


def test_a_stopped_run_says_what_to_type_and_that_finishes_it(call, recipe_file):
    ran = call("train", recipe_file, "--stop-after", 3)
    assert ran.code == 0
    assert "3 of 4 are done" in ran.out
    command = ran.out.splitlines()[-1].removeprefix("continue with: qlora ")
    resumed = call(*command.split(), "--json")
    assert resumed.json["is_finished"] is True
    assert "resuming at step 3" in resumed.err
    assert "step 4/4" in resumed.err
    assert "step 3/4" not in resumed.err


def test_a_finished_run_is_neither_overwritten_unasked_nor_kept_when_asked(call, recipe_file, tmp_path):
    call("train", recipe_file, "--set", "training.max_steps=1")
    again = call("train", recipe_file)
    assert again.code == 2
    assert again.out == ""
    assert "already holds a finished run" in again.err
    assert "--overwrite" in again.err
    for name in ("thesis.txt", "adapter/notes.txt"):
        (tmp_path / "runs/small" / name).write_text("mine")
    over = call("train", recipe_file, "--overwrite", "--json")
    assert over.json["num_steps"] == 4
    assert "kept in runs/small, not part of the run: adapter/notes.txt, thesis.txt" in over.err
    assert [(tmp_path / "runs/small" / name).read_text() for name in ("thesis.txt", "adapter/notes.txt")] == [
        "mine"
    ] * 2


def files_in(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("data.train=nowhere.jsonl", 2),
        ("data.max_length=2", 2),
        ("model.base_model=no-such-base", 2),
        ("lora.target_modules=[no_such_proj]", 2),
    ],
)
def test_a_run_whose_successor_cannot_start_stays_as_it_was(call, recipe_file, tmp_path, change, code):
    call("train", recipe_file, "--set", "training.max_steps=1")
    before = files_in(tmp_path / "runs")
    ran = call("train", recipe_file, "--overwrite", "--set", change)
    assert ran.code == code, ran.err
    assert "error: " in ran.err
    assert files_in(tmp_path / "runs") == before


def test_a_signal_while_a_successor_is_prepared_brings_the_earlier_run_back(call, recipe_file, tmp_path, monkeypatch):
    call("train", recipe_file, "--set", "training.max_steps=1")
    before = files_in(tmp_path / "runs")

    def prepare_data(*arguments):
        assert files_in(tmp_path / "runs") != before
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(session, "prepare_data", prepare_data)
    ran = call("train", recipe_file, "--overwrite")
    assert ran.code == 143
    assert "nothing is trained yet" in ran.err
    assert "start it again with the same command" in ran.err
    assert "the earlier run is in runs/small as before" in ran.err
    assert files_in(tmp_path / "runs") == before


def test_resume_and_overwrite_exclude_each_other(call, recipe_file, tmp_path):
    ran = call("train", recipe_file, "--resume", "--overwrite")
    assert ran.code == 2
    assert "exclude each other" in ran.err
    assert not (tmp_path / "runs").exists()


def test_a_requeued_job_starts_the_run_that_had_not_begun_and_resumes_it_afterwards(call, recipe_file):
    first = call("train", recipe_file, "--resume", "--stop-after", 2)
    assert first.code == 0
    assert "there is no run in runs/small yet: it starts at the beginning" in first.err
    again = call("train", recipe_file, "--resume")
    assert again.code == 0
    assert "resuming at step 2" in again.err


def test_a_changed_recipe_is_not_resumed_and_the_exit_code_is_3(call, recipe_file):
    call("train", recipe_file, "--stop-after", 1)
    ran = call("train", recipe_file, "--resume", "--set", "lora.r=8")
    assert ran.code == 3
    assert "lora.r: 4 -> 8" in ran.err


def test_a_run_directory_in_use_is_exit_code_6(call, recipe_file, tmp_path):
    with claimed(RunDirectory(tmp_path / "runs/small")):
        ran = call("train", recipe_file)
    assert ran.code == 6
    assert "is writing to run directory" in ran.err


def test_a_base_that_is_not_there_is_exit_code_2(call, recipe_file):
    ran = call("train", recipe_file, "--set", "model.base_model=./nowhere")
    assert ran.code == 2
    assert "model.base_model './nowhere' cannot be loaded" in ran.err
    assert "Traceback" not in ran.err


def test_a_malformed_data_file_is_exit_code_2_with_its_line(call, recipe_file, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": \n')
    ran = call("train", recipe_file, "--set", "data.train=rows.jsonl")
    assert ran.code == 2
    assert ran.err.startswith("error: rows.jsonl:2: ")
    assert "Traceback" not in ran.err


def stop_by(number: signal.Signals, fork, recipe_file):
    """Start a long run and send the signal once it has done steps; how it ended, and the run."""
    run = RunDirectory(recipe_file.parent / "runs/small")
    process = fork("train", recipe_file, "--set", "training.max_steps=40")
    deadline = time.monotonic() + 120
    while not run.metrics_path.exists():
        assert process.is_running(), process.err.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process.stop(number), run


def test_ctrl_c_saves_a_checkpoint_that_finishes_later_without_a_word_from_the_libraries(fork, start, recipe_file):
    ended, run = stop_by(signal.SIGINT, fork, recipe_file)
    assert (ended.code, ended.out) == (130, "")
    assert "SIGINT: finishing this step and saving a checkpoint" in ended.err
    assert "the checkpoint is saved" in ended.err
    assert "Traceback" not in ended.err
    newest = list_checkpoints(run.checkpoints_path)[-1]
    assert newest.problem() == ""
    assert read_manifest(run)["num_steps"] == newest.step
    resumed = start("train", run.recipe_path, "--run-dir", run.path, "--resume", "--json")
    out, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0
    assert json.loads(out)["is_finished"] is True
    assert f"resuming at step {newest.step} " in err
    assert [line["step"] for line in read_metrics(run.metrics_path) if "loss" in line] == list(range(1, 41))
    for noise in ("Warning", "Loading weights", "it/s", "deprecated"):
        assert noise not in err
        assert noise not in out
    assert "FutureWarning" in run.log_path.read_text()


def test_a_plain_kill_saves_a_checkpoint_and_ends_with_143(fork, recipe_file):
    ended, run = stop_by(signal.SIGTERM, fork, recipe_file)
    assert ended.code == 143
    assert "SIGTERM" in ended.err
    assert list_checkpoints(run.checkpoints_path)[-1].problem() == ""


def test_a_resume_with_nothing_left_says_so_and_repeats_what_was_reached(call, recipe_file):
    reached = call("train", recipe_file, "--json").json
    again = call("train", recipe_file, "--resume")
    assert "already finished (4 of 4 steps): loss " in again.out
    assert f"eval loss {reached['eval_loss']:.4f}" in again.out
