"""Rows, tokens and steps of a recipe's data, and what is said where they are not known."""

from __future__ import annotations

import pytest

from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.plan import dataset_size
from qlora_cli.plan.dataset_size import find_workload, num_steps
from qlora_cli.recipe.schema import Recipe, TrainingSection
from qlora_cli.train.step.sampler import ShardedSampler


@pytest.fixture
def recipe(tiny_base, chat_data):
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"base_model": str(tiny_base)},
            "data": {"train": str(chat_data), "max_length": 64, "packing": True},
        }
    )


def test_the_workload_is_what_training_would_read(recipe):
    prepared = prepare_data(recipe.data, Renderer(load_tokenizer(recipe.model)), recipe.training.seed)
    found, why = find_workload(recipe)
    assert why == ""
    assert found.num_rows == len(prepared.train)
    assert found.num_tokens == sum(len(row.input_ids) for row in prepared.train)
    assert found.num_steps == num_steps(len(prepared.train), recipe.training)


@pytest.mark.parametrize(
    ("num_rows", "settings", "steps"),
    [
        (32, {"num_train_epochs": 1}, 2),
        (33, {"num_train_epochs": 1}, 3),
        (33, {"num_train_epochs": 0.5}, 2),
        (1, {}, 3),
        (10_000, {"max_steps": 7}, 7),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(num_rows, settings, steps):
    assert num_steps(num_rows, TrainingSection(**settings)) == steps


def test_large_data_that_is_not_prepared_is_left_to_data_check(recipe, monkeypatch, empty_cache):
    monkeypatch.setattr(dataset_size, "MAX_BYTES_READ", 10)
    found, why = find_workload(recipe)
    assert found is None
    assert "qlora data check" in why


def test_large_data_that_is_prepared_is_counted(recipe, monkeypatch, empty_cache):
    prepare_data(recipe.data, Renderer(load_tokenizer(recipe.model)), recipe.training.seed)
    monkeypatch.setattr(dataset_size, "MAX_BYTES_READ", 10)
    assert find_workload(recipe)[0] is not None


def test_a_base_without_tokenizer_is_said(recipe, tmp_path):
    bare = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base_model": str(tmp_path)})})
    found, why = find_workload(bare)
    assert found is None
    assert str(tmp_path) in why


@pytest.mark.parametrize(("num_rows", "num_gpus"), [(33, 2), (32, 4), (7, 3)])
def test_steps_of_several_gpus_are_those_of_the_rows_that_each_gets(num_rows, num_gpus):
    training = TrainingSection(per_device_train_batch_size=2, gradient_accumulation_steps=1, num_train_epochs=1)
    its_rows = len(ShardedSampler(num_rows, 2, 0, num_gpus, seed=0))
    assert num_steps(num_rows, training, num_gpus) == its_rows // 2
