"""Early stopping and the best adapter: decided by the eval losses, and after a resume decided as without one."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import EarlyStoppingCallback

from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.checkpoints import SEAL_NAME, list_checkpoints
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.files import sha256_file
from qlora_cli.run.manifest import read_manifest
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.callbacks.early_stopping import best_step, num_without_gain
from qlora_cli.train.session import TrainOptions, train_recipe

STEPS = 8
BEST, SOON_AFTER = 2, 4
"""The eval loss of step 2 is lower than those of steps 1, 3 and 4."""

EPOCH = 4
"""Steps: 15 packed rows, four a step."""

MEASURED = {"tokens_per_second", "peak_memory_bytes"}


@given(st.lists(st.floats(0, 4), min_size=1, max_size=30), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_count_is_that_of_the_stock_callback(values, threshold):
    """transformers' own counts on with state; ours counts from the list."""
    stock, state = EarlyStoppingCallback(99, threshold), TrainerState()
    args = TrainingArguments(metric_for_best_model="loss", greater_is_better=False)
    for value in values:
        stock.check_metric_value(args, state, TrainerControl(), value)
        state.best_metric = value if state.best_metric is None else min(value, state.best_metric)
    losses = {10 * index: value for index, value in enumerate(values)}
    difference = abs(num_without_gain(losses, threshold) - stock.early_stopping_patience_counter)
    assert difference == 0 or threshold  # `a - b > t` and `a < b - t` may round to different sides
    assert losses[best_step(losses)] == min(values)


@pytest.fixture
def recipe(small_recipe):
    """A run whose eval loss falls and then rises, for the learning rate is far too high."""

    def build(**training) -> Recipe:
        sections = {key: training.pop(key) for key in ("eval", "data", "lora") if key in training}
        sections.setdefault("eval", {"eval_strategy": "steps", "eval_steps": 1})
        defaults = {"max_steps": STEPS, "learning_rate": 0.3, "lr_scheduler_type": "constant"}
        return small_recipe(training={**defaults, **training}, **sections)

    return build


def eval_losses(run: RunDirectory) -> dict[int, float]:
    return {line["step"]: line["eval_loss"] for line in read_metrics(run.metrics_path) if "eval_loss" in line}


def remains(run: RunDirectory) -> dict[str, object]:
    """Every file of the run's adapter and checkpoints by its hash, its lines, and what the manifest says of the end."""
    manifest = read_manifest(run)
    left: dict[str, object] = {key: manifest.get(key) for key in ("status", "num_steps", "adapter_step", "early_stop")}
    left["metrics"] = [{k: line[k] for k in line.keys() - MEASURED} for line in read_metrics(run.metrics_path)]
    for path in (*run.checkpoints_path.rglob("*"), *run.adapter_path.iterdir()):
        if path.is_file() and path.name not in (SEAL_NAME, "trainer_state.json"):
            left[str(path.relative_to(run.path))] = sha256_file(path)
    return left


def run_of(recipe: Recipe, path, *stops: int) -> RunDirectory:
    """A run that is stopped and resumed after every few steps."""
    run = RunDirectory(path)
    for number, stop in enumerate(stops):
        train_recipe(recipe, run, TrainOptions(stop_after=stop, resume=number > 0))
    train_recipe(recipe, run, TrainOptions(resume=bool(stops)))
    return run


def test_a_run_whose_eval_loss_no_longer_falls_ends_early_and_is_finished(recipe, tmp_path):
    whole = eval_losses(run_of(recipe(), tmp_path / "whole"))
    run = RunDirectory(tmp_path / "run")
    result = train_recipe(recipe(early_stopping_patience=2), run, TrainOptions())
    ends = [step for step in whole if num_without_gain({s: whole[s] for s in whole if s <= step}, 0.0) == 2]
    assert result.num_steps == ends[0] < STEPS
    assert eval_losses(run) == {step: whole[step] for step in range(1, ends[0] + 1)}
    manifest = read_manifest(run)
    best = best_step(eval_losses(run))
    assert (manifest["status"], manifest["num_steps"], manifest["adapter_step"]) == ("finished", ends[0], ends[0])
    assert manifest["early_stop"] == {
        "step": ends[0],
        "num_evaluations": 2,
        "best_step": best,
        "best_eval_loss": whole[best],
    }
    assert run.is_finished
    assert f"stopped early at step {ends[0]}: 2 evaluations in a row did not improve on" in str(result.early_stop)
    assert json.loads(json.dumps(result.as_dict()))["adapter_step"] == ends[0]


@pytest.mark.parametrize("load_best", [False, True], ids=["last", "best"])
def test_stopped_after_every_step_it_ends_as_the_straight_run_to_the_bit(recipe, tmp_path, load_best):
    training = {"early_stopping_patience": 2, "load_best_model_at_end": load_best}
    training |= {"save_strategy": "steps", "save_steps": 1}  # a stop saves, so that the same checkpoints stay
    straight = run_of(recipe(**training), tmp_path / "straight")
    num_steps = read_manifest(straight)["num_steps"]
    assert num_steps >= 3
    stops = [1] * (num_steps - 1)
    assert remains(run_of(recipe(**training), tmp_path / "resumed", *stops)) == remains(straight)


def test_a_finished_early_stop_is_resumed_without_a_step(recipe, tmp_path):
    run = run_of(recipe(early_stopping_patience=2, load_best_model_at_end=True), tmp_path / "run")
    before = remains(run)
    shutil.rmtree(run.adapter_path)
    again = train_recipe(recipe(early_stopping_patience=2, load_best_model_at_end=True), run, TrainOptions(resume=True))
    assert (again.num_steps_now, again.is_finished) == (0, True)
    assert remains(run) == before


def test_more_patience_goes_on_to_where_the_patient_run_ends(recipe, tmp_path):
    patient = run_of(recipe(early_stopping_patience=4), tmp_path / "patient")
    run = run_of(recipe(early_stopping_patience=1), tmp_path / "run")
    assert read_manifest(run)["num_steps"] < read_manifest(patient)["num_steps"]
    train_recipe(recipe(early_stopping_patience=4), run, TrainOptions(resume=True))
    newest = f"checkpoints/step-{read_manifest(patient)['num_steps']:06d}/optimizer.safetensors"
    one, other = remains(run), remains(patient)
    for name in ("metrics", "num_steps", "early_stop", "adapter/adapter_model.safetensors", newest):
        assert one[name] == other[name]


def test_an_evaluation_that_a_kill_took_away_is_made_up_for_and_ends_the_run_before_another_step(recipe, tmp_path):
    """At an epoch's end a stop saves the checkpoint before the evaluation; a kill may come between them."""
    training = {"eval": {"eval_strategy": "epoch"}, "early_stopping_patience": 1, "early_stopping_threshold": 100}
    straight = run_of(recipe(**training, max_steps=3 * EPOCH), tmp_path / "straight")
    assert read_manifest(straight)["num_steps"] == 2 * EPOCH
    run = RunDirectory(tmp_path / "run")
    assert train_recipe(recipe(**training, max_steps=3 * EPOCH), run, TrainOptions(stop_after=2 * EPOCH)).is_finished
    kept = [line for line in run.metrics_path.read_text().splitlines(True) if not is_evaluation_of(line, 2 * EPOCH)]
    run.metrics_path.write_text("".join(kept))
    result = train_recipe(recipe(**training, max_steps=3 * EPOCH), run, TrainOptions(resume=True))
    assert (result.num_steps, result.num_steps_now, result.is_finished) == (2 * EPOCH, 0, True)
    assert remains(run) == remains(straight)


def is_evaluation_of(line: str, step: int) -> bool:
    values = json.loads(line)
    return values["step"] == step and "eval_loss" in values


def test_the_adapter_is_that_of_the_best_step_and_its_checkpoint_outlives_the_rotation(recipe, tmp_path):
    training = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": SOON_AFTER}
    every = run_of(recipe(**{**training, "save_total_limit": 99}), tmp_path / "every")
    run = run_of(recipe(**training, load_best_model_at_end=True), tmp_path / "run")
    assert read_manifest(run)["adapter_step"] == BEST == best_step(eval_losses(every))
    assert [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints_path)] == [BEST, SOON_AFTER]
    wanted = every.checkpoints_path / f"step-{BEST:06d}" / "adapter_model.safetensors"
    assert (run.adapter_path / "adapter_model.safetensors").read_bytes() == wanted.read_bytes()
    last = load_file(every.adapter_path / "adapter_model.safetensors")
    assert any((last[name] != tensor).any() for name, tensor in load_file(wanted).items())


def test_the_best_step_is_saved_where_nothing_else_would_save_it(recipe, tmp_path):
    run = run_of(recipe(save_strategy="no", load_best_model_at_end=True, max_steps=SOON_AFTER), tmp_path / "run")
    assert read_manifest(run)["adapter_step"] == BEST
    assert {BEST, SOON_AFTER} <= {checkpoint.step for checkpoint in list_checkpoints(run.checkpoints_path)}


def test_a_damaged_best_checkpoint_is_said_and_the_next_best_is_taken(recipe, tmp_path, capsys):
    training = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 99, "max_steps": SOON_AFTER}
    training |= {"load_best_model_at_end": True}
    run = run_of(recipe(**training), tmp_path / "run")
    best, second = sorted(eval_losses(run), key=eval_losses(run).get)[:2]
    (run.checkpoints_path / f"step-{best:06d}" / "adapter_model.safetensors").write_bytes(b"")
    capsys.readouterr()
    train_recipe(recipe(**training), run, TrainOptions(resume=True))
    assert f"the adapter of step {best}," in capsys.readouterr().err
    assert read_manifest(run)["adapter_step"] == second


def test_a_longer_run_goes_on_from_the_last_step_not_from_the_best(recipe, tmp_path):
    long = run_of(recipe(load_best_model_at_end=True, max_steps=SOON_AFTER + 3), tmp_path / "long")
    run = run_of(recipe(load_best_model_at_end=True, max_steps=SOON_AFTER), tmp_path / "run")
    assert read_manifest(run)["adapter_step"] == BEST
    train_recipe(recipe(load_best_model_at_end=True, max_steps=SOON_AFTER + 3), run, TrainOptions(resume=True))
    name = f"checkpoints/step-{SOON_AFTER + 3:06d}/optimizer.safetensors"
    assert remains(run)[name] == remains(long)[name]
    assert remains(run)["adapter_step"] == remains(long)["adapter_step"]
