"""Predicted disk space of a run, against what real runs write."""

from __future__ import annotations

from typing import get_args

import pytest

from qlora_cli.plan.disk import TrainedTensor, disk_of, num_checkpoints, state_bytes
from qlora_cli.plan.parameter_counts import parameter_counts
from qlora_cli.recipe.schema import Recipe, TrainingSection
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.model.bases import EXTRA_SHARD, save_toy
from tests.plan.bases import AMPERE, config_of, request_for

OPTIMIZERS = get_args(TrainingSection.model_fields["optim"].annotation)

SMALL_FILES = 60_000
"""Bytes of a checkpoint that are not tensors of adapter and optimizer: names, checkpoint.json, random states."""


def test_the_adapter_is_float32_and_the_merged_model_16_bit():
    request = request_for(config_of("llama"), AMPERE, training__optim="adamw_torch", lora__r=64)
    facts = parameter_counts(request)
    disk = disk_of(request.recipe, facts.trained, facts.num_base)
    assert disk.adapter_bytes == 4 * facts.num_trained
    assert disk.merged_bytes == 2 * facts.num_base
    # Three of them, the third being written before the first goes; AdamW keeps two float32 a parameter, and a step.
    assert disk.checkpoints_bytes == 3 * (12 * facts.num_trained + 4 * len(facts.trained))


def test_the_merged_model_is_as_large_as_the_files_of_the_base_with_what_no_class_loads(tmp_path):
    base = save_toy("qwen3_5_vl", tmp_path / "base")
    recipe = Recipe.model_validate({"name": "run", "model": {"base_model": str(base)}, "data": {"train": "rows.jsonl"}})
    files = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    assert (base / EXTRA_SHARD).stat().st_size > 0
    assert disk_of(recipe, [], 1000).merged_bytes == files
    (base / EXTRA_SHARD).unlink()
    assert disk_of(recipe, [], 1000).merged_bytes == 2000  # not whole: as if it were not here


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_checkpoint_takes_what_is_said(tiny_base, chat_data, tmp_path, optim):
    """r 128 makes A matrices of 8,192 elements, whose moments are in 8 bit, and B matrices of fewer, whose are not."""
    recipe = Recipe.model_validate(
        {
            "name": "run",
            "model": {"base_model": str(tiny_base)},
            "lora": {"r": 128, "target_modules": ["q_proj", "v_proj"]},
            "data": {"train": str(chat_data), "max_length": 128},
            "training": {"max_steps": 1, "optim": optim},
        }
    )
    run = RunDirectory(tmp_path / "run")
    train_recipe(recipe, run, TrainOptions())
    written = sum(path.stat().st_size for path in (run.checkpoints_path / "step-000001").iterdir())
    sizes = [128 * 64, 64 * 128, 128 * 64, 32 * 128] * 2
    disk = disk_of(recipe, [TrainedTensor(size, 4) for size in sizes], 0)
    assert disk.checkpoint_bytes <= written <= disk.checkpoint_bytes + SMALL_FILES
    assert 0.2 * disk.checkpoint_bytes > SMALL_FILES


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"save_total_limit": 5, "num_train_epochs": 3}, 3),
        ({"save_total_limit": 1, "num_train_epochs": 3}, 2),
        ({"save_total_limit": 5, "num_train_epochs": 0.1}, 1),
        ({"save_total_limit": 5, "max_steps": 100}, 6),
        ({"save_total_limit": 5, "max_steps": 101, "save_strategy": "steps", "save_steps": 50}, 3),
        ({"save_total_limit": 5, "save_strategy": "steps", "save_steps": 50}, 6),
        ({"save_total_limit": 5, "save_strategy": "no"}, 1),
    ],
    ids=str,
)
def test_no_more_checkpoints_are_counted_than_will_be_there(settings, number):
    assert num_checkpoints(TrainingSection(**settings)) == number


def test_paged_state_takes_the_same_room_on_the_disk():
    assert state_bytes("paged_adamw_8bit", 10**6) == state_bytes("adamw_8bit", 10**6)
    assert state_bytes("paged_adamw_32bit", 10**6) == 8 * 10**6
