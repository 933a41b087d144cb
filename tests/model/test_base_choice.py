"""Options about the base are laid over what was saved, and what they cannot mean is refused."""

from __future__ import annotations

import pytest

from qlora_cli.errors import ArgumentError, RecipeError
from qlora_cli.model.base_choice import AS_SAVED, BaseChoice
from qlora_cli.recipe.schema import ModelSection, QuantizationSection

SAVED = (ModelSection(base_model="org/base", revision="v1", dtype="bfloat16"), QuantizationSection(double_quant=False))


def test_nothing_chosen_is_what_was_saved():
    assert AS_SAVED.apply(*SAVED) == SAVED


def test_another_base_does_not_keep_the_revision_of_the_first():
    model, _ = BaseChoice("org/other").apply(*SAVED)
    assert (model.base_model, model.revision, model.dtype) == ("org/other", None, "bfloat16")


def test_a_revision_goes_with_the_base_that_is_named_beside_it():
    model, _ = BaseChoice("org/other", revision="v2").apply(*SAVED)
    assert (model.base_model, model.revision) == ("org/other", "v2")


@pytest.mark.parametrize(("name", "quant_type"), [("none", None), ("int8", "int8"), ("fp4", "fp4")])
def test_a_storage_is_chosen_by_its_name(name, quant_type):
    _, quantization = BaseChoice(quantization=name).apply(*SAVED)
    assert (quantization and quantization.quant_type) == quant_type


def test_the_storage_that_was_saved_keeps_its_details_when_it_is_named():
    assert BaseChoice(quantization="nf4").apply(*SAVED) == SAVED


def test_keys_of_model_and_quantization_are_set():
    overrides = ("model.dtype=float32", "quantization.double_quant=true", "model.allow_pickle=true")
    model, quantization = BaseChoice(overrides=overrides).apply(*SAVED)
    assert (model.dtype, model.allow_pickle, model.revision) == ("float32", True, "v1")
    assert quantization.double_quant is True


@pytest.mark.parametrize("text", ["lora.r=3", "training.max_steps=1", "modl.dtype=float32", "dtype=float32"])
def test_a_key_that_says_nothing_about_the_base_is_refused(text):
    with pytest.raises(ArgumentError, match="a finished adapter is not changed by it") as caught:
        BaseChoice(overrides=(text,)).apply(*SAVED)
    assert "model.dtype=float32" in caught.value.problems[0].hint


@pytest.mark.parametrize("text", ["model.dtpye=float32", "model.dtype=float23", "quantization.quant_type=nf5"])
def test_a_wrong_key_or_value_is_told_as_in_a_recipe(text):
    with pytest.raises(RecipeError) as caught:
        BaseChoice(overrides=(text,)).apply(*SAVED)
    assert caught.value.problems[0].place == f"--set {text}"
    assert caught.value.problems[0].hint
