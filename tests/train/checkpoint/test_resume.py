"""What may change between two sessions of a run, and what may not."""

from __future__ import annotations

import shutil

import pytest

from qlora_cli.errors import IdentityError
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.run.checkpoints import list_checkpoints
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest, write_manifest
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.checkpoint.identity import changed_keys, checkpoint_identity
from qlora_cli.train.checkpoint.resume import check_same_identity, find_checkpoint
from qlora_cli.train.session import TrainOptions, train_recipe

UNPACKED = {"packing": False}


@pytest.mark.parametrize(
    "change",
    [
        {"lora": {"lora_alpha": 8.0}},
        {"training": {"learning_rate": 0.02}},
        {"data": {"max_length": 256}},
        {"quantization": {}},
        {"model": {"dtype": "bfloat16"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_key_that_changes_what_is_computed_is_named(narrow_recipe, change):
    [section] = change
    changed = [key for key, _, _ in changed_keys(narrow_recipe(), narrow_recipe(**change))]
    assert changed
    assert all(key.startswith(section) for key in changed)


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"logging_steps": 7}},
        {"training": {"save_total_limit": 9}},
        {"eval": {"per_device_eval_batch_size": 3}},
        {"tracking": {"report_to": ["tensorboard"]}},
        {"name": "other"},
    ],
    ids=str,
)
def test_a_key_that_changes_only_what_is_written_may_change(narrow_recipe, change):
    assert changed_keys(narrow_recipe(), narrow_recipe(**change)) == []


@pytest.mark.parametrize("section", [None, "x", [], {}, {"fingerprint": None}, {"fingerprint": "other"}])
def test_a_manifest_that_says_nothing_of_the_base_or_another_one_is_refused(tmp_path, section):
    run = RunDirectory(tmp_path)
    write_manifest(run, {"base": {"fingerprint": "same"}})
    check_same_identity(run, {"base": {"fingerprint": "same"}})
    write_manifest(run, {"base": section})
    with pytest.raises(IdentityError, match="base"):
        check_same_identity(run, {"base": {"fingerprint": "same"}})


def by_epochs(narrow_recipe, epochs):
    return narrow_recipe(training={"max_steps": None, "num_train_epochs": epochs})


def test_a_run_may_end_later(narrow_recipe):
    assert changed_keys(narrow_recipe(), narrow_recipe(training={"max_steps": 9})) == []
    assert changed_keys(by_epochs(narrow_recipe, 1.5), by_epochs(narrow_recipe, 2.0)) == []
    assert changed_keys(by_epochs(narrow_recipe, None), by_epochs(narrow_recipe, 4.0)) == []


def test_it_may_not_end_sooner_or_be_counted_otherwise(narrow_recipe):
    keys = ["training.max_steps", "training.num_train_epochs"]
    assert changed_keys(narrow_recipe(), narrow_recipe(training={"max_steps": 7})) == [(keys[0], 8, 7)]
    assert changed_keys(by_epochs(narrow_recipe, None), by_epochs(narrow_recipe, 2.0)) == [(keys[1], None, 2.0)]
    assert [key for key, _, _ in changed_keys(narrow_recipe(), by_epochs(narrow_recipe, 50.0))] == keys


def test_a_seal_tells_recipes_apart_that_train_otherwise_and_no_others(narrow_recipe):
    facts = {"data": {"fingerprint": "d", "num_train_rows": 3}}
    seal = checkpoint_identity(narrow_recipe(), facts)
    assert seal["data_fingerprint"] == "d"
    assert checkpoint_identity(narrow_recipe(training={"max_steps": 9, "logging_steps": 5}), facts) == seal
    assert checkpoint_identity(narrow_recipe(lora={"lora_alpha": 8.0}), facts) != seal


def test_a_checkpoint_of_another_run_is_passed_over(narrow_recipe, tmp_path, capsys):
    """Both runs have the same data and base; only the learning rate distinguishes them."""
    run, other = (RunDirectory(tmp_path / name) for name in ("run", "other"))
    for directory, rate in ((run, 0.01), (other, 0.02)):
        recipe = narrow_recipe(training={"learning_rate": rate, "save_strategy": "steps", "save_steps": 2})
        train_recipe(recipe, directory, TrainOptions(stop_after=4))
    shutil.rmtree(run.checkpoints_path / "step-000004")
    shutil.copytree(other.checkpoints_path / "step-000004", run.checkpoints_path / "step-000004")
    capsys.readouterr()
    recipe = narrow_recipe(training={"save_strategy": "steps", "save_steps": 2})
    assert find_checkpoint(run, recipe).step == 2
    assert (
        "step-000004 is passed over: it belongs to another run: not the same recipe_sha256" in capsys.readouterr().err
    )


EPOCH = 11
"""Steps: 44 rows, four a step."""


@pytest.mark.parametrize("done", [4, EPOCH], ids=["in an epoch", "at an epoch's end"])
def test_a_finished_run_that_ends_later_is_the_long_run_to_the_bit(narrow_recipe, tmp_path, done):
    """At a constant rate; other schedules stretch with the run."""
    schedule = {"lr_scheduler_type": "constant"}
    short, long = (narrow_recipe(data=UNPACKED, training={"max_steps": s, **schedule}) for s in (done, EPOCH + 5))
    straight, grown = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "grown")
    train_recipe(long, straight, TrainOptions())
    assert train_recipe(short, grown, TrainOptions()).is_finished
    result = train_recipe(long, grown, TrainOptions(resume=True))
    assert (result.num_steps_now, result.is_finished) == (EPOCH + 5 - done, True)
    for name in ("adapter/adapter_model.safetensors", f"checkpoints/step-{EPOCH + 5:06d}/optimizer.safetensors"):
        assert (grown.path / name).read_bytes() == (straight.path / name).read_bytes()
    assert read_manifest(grown)["status"] == "finished"
    assert load_recipe(grown.recipe_path).training.max_steps == EPOCH + 5


def test_the_rate_of_a_run_that_ends_later_is_that_of_the_long_run_from_there_on(narrow_recipe, tmp_path, capsys):
    short, long = (narrow_recipe(training={"max_steps": steps}) for steps in (4, 8))
    straight, grown = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "grown")
    train_recipe(long, straight, TrainOptions())
    train_recipe(short, grown, TrainOptions())
    train_recipe(long, grown, TrainOptions(resume=True))
    assert rates(grown)[4:] == rates(straight)[4:]
    assert rates(grown)[1:4] != rates(straight)[1:4]
    said = capsys.readouterr().err
    assert "the run now ends after 8 steps instead of 4" in said
    assert "from step 5 on the learning rate follows the cosine schedule of 8 steps" in said


def rates(run: RunDirectory) -> list[float]:
    return [line["learning_rate"] for line in read_metrics(run.metrics_path) if "learning_rate" in line]


def test_intervals_that_change_on_resume_are_those_that_count(narrow_recipe, tmp_path):
    """The stock trainer keeps the intervals of the session that wrote the checkpoint."""
    run = RunDirectory(tmp_path / "run")
    steps = {"max_steps": 12, "save_strategy": "steps", "save_total_limit": 9}
    train_recipe(
        narrow_recipe(training={**steps, "save_steps": 2, "logging_steps": 1}), run, TrainOptions(stop_after=4)
    )
    train_recipe(narrow_recipe(training={**steps, "save_steps": 3, "logging_steps": 4}), run, TrainOptions(resume=True))
    logged = [line["step"] for line in read_metrics(run.metrics_path) if "loss" in line]
    assert logged == [1, 2, 3, 4, 8, 12]
    assert [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints_path)] == [2, 4, 6, 9, 12]
