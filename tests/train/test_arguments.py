"""The recipe's words reach the trainer."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.errors import RecipeError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.arguments import optimizer_on, trainer_arguments

CPU = torch.device("cpu")


def arguments(recipe, tmp_path, dtype=torch.float32):
    return trainer_arguments(recipe, RunDirectory(tmp_path), dtype, CPU)


def test_without_epochs_or_steps_the_data_is_seen_three_times(small_recipe, tmp_path):
    made = arguments(small_recipe(training={"max_steps": None}), tmp_path)
    assert (made.num_train_epochs, made.max_steps) == (3.0, -1)


def test_the_warm_up_is_a_share_of_all_steps(small_recipe, tmp_path):
    made = arguments(small_recipe(training={"warmup_ratio": 0.03}), tmp_path)
    assert made.get_warmup_steps(1000) == 30


@pytest.mark.parametrize(
    ("autocast", "dtype", "expected"),
    [
        (True, torch.bfloat16, (True, False)),
        (True, torch.float32, (False, False)),
        (False, torch.bfloat16, (False, False)),
    ],
)
def test_mixed_precision_follows_the_dtypes_of_base_and_adapter(small_recipe, tmp_path, autocast, dtype, expected):
    made = arguments(small_recipe(lora={"autocast_adapter_dtype": autocast}), tmp_path, dtype)
    assert (made.bf16, made.fp16) == expected


def test_a_loss_that_is_not_finite_is_never_averaged_away(small_recipe, tmp_path):
    assert arguments(small_recipe(), tmp_path).logging_nan_inf_filter is False


def test_paged_optimizers_stay_paged_on_a_gpu():
    assert optimizer_on("paged_adamw_8bit", torch.device("cuda")) == "paged_adamw_8bit"
    assert optimizer_on("paged_adamw_8bit", CPU) == "adamw_8bit"
    assert optimizer_on("adamw_torch", CPU) == "adamw_torch"


def test_activations_are_moved_to_host_memory_only_where_they_are_not_there_already(small_recipe, tmp_path):
    recipe = small_recipe(training={"activation_offloading": True})
    with pytest.raises(RecipeError, match="no GPU whose memory it would save"):
        arguments(recipe, tmp_path)
    assert not arguments(small_recipe(), tmp_path).activation_offloading


def test_adapters_in_float16_are_refused_since_no_loss_scaler_takes_their_gradients(small_recipe, tmp_path):
    with pytest.raises(RecipeError, match="autocast_adapter_dtype"):
        arguments(small_recipe(lora={"autocast_adapter_dtype": False}), tmp_path, torch.float16)
