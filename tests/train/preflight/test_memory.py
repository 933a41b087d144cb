"""Before it starts a run says what will not fit, and afterwards what it has taken."""

from __future__ import annotations

import pytest
from transformers import MptConfig

from qlora_cli.errors import RecipeError, ResourceError
from qlora_cli.plan.machine.host_memory import available_bytes
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest
from qlora_cli.train.preflight.memory import forecast_memory
from qlora_cli.train.session import TrainOptions, train_recipe

HUGE = {"training": {"per_device_train_batch_size": 65_536}, "data": {"max_length": 512}}
"""A batch that no machine's memory holds; the data has fewer rows, so training really goes through."""


def test_what_cannot_fit_is_refused_before_anything_is_written_or_deleted(small_recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    train_recipe(small_recipe(), run, TrainOptions())
    with pytest.raises(ResourceError) as caught:
        train_recipe(small_recipe(**HUGE), run, TrainOptions(overwrite=True, check_memory=True))
    [problem] = caught.value.problems
    assert caught.value.exit_code == 5
    assert "more than the" in problem.text
    assert "are free on this machine" in problem.text
    assert "--set training.per_device_train_batch_size=auto" in problem.hint
    assert "--set training.gradient_accumulation_steps=131072" in problem.hint
    assert "--force" in problem.hint
    assert run.is_finished


def test_with_force_it_is_said_and_trained(small_recipe, tmp_path, capsys):
    recipe = small_recipe(**HUGE | {"training": {"per_device_train_batch_size": 65_536, "max_steps": 1}})
    session = TrainOptions(check_memory=True, force=True)
    assert train_recipe(recipe, RunDirectory(tmp_path / "run"), session).is_finished
    assert "it is tried anyway" in capsys.readouterr().err


def test_the_memory_is_shared_by_the_processes_of_a_machine(small_recipe):
    needed = forecast_memory(small_recipe()).needs.device_bytes
    forecast_memory(small_recipe(), num_processes=2)
    too_many = available_bytes() // needed * 2
    with pytest.raises(ResourceError, match="a step needs"):
        forecast_memory(small_recipe(), num_processes=too_many)


def test_predicted_and_measured_bytes_stand_in_the_manifest(small_recipe, tmp_path):
    recipe, run = small_recipe(), RunDirectory(tmp_path / "run")
    train_recipe(recipe, run, TrainOptions(check_memory=True))
    memory = read_manifest(run)["memory"]
    assert memory["predicted_bytes"]["allocated"] == forecast_memory(recipe).needs.allocated_bytes
    assert memory["measured_bytes"]["resident"] > 0


def test_a_base_whose_step_cannot_be_traced_is_trained_all_the_same(small_recipe, tmp_path, capsys):
    """As far as it goes: this one does not know the kernel that the recipe asks for, which training will say."""
    MptConfig(d_model=64, n_heads=2, n_layers=2, vocab_size=300).save_pretrained(tmp_path / "base")
    outlook = forecast_memory(small_recipe(model={"base_model": str(tmp_path / "base")}))
    assert (outlook.needs, outlook.micro_batch_size) == (None, 2)
    said = capsys.readouterr().err
    assert "memory is not planned: " in said
    assert "MptForCausalLM" in said


def test_a_base_that_is_not_there_is_told_once(small_recipe, tmp_path):
    with pytest.raises(RecipeError, match="no-such-base"):
        forecast_memory(small_recipe(model={"base_model": str(tmp_path / "no-such-base")}))


def test_automatic_batches_are_all_rows_of_a_step_where_they_fit(small_recipe, capsys):
    training = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 6}
    assert forecast_memory(small_recipe(training=training)).micro_batch_size == 6
    assert "batch size: 6 of the 6 rows of a step in one pass" in capsys.readouterr().err
