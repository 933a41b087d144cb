"""The starter recipe with values that were chosen for a card."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.starter import Choice, StarterValues, starter_text
from qlora_cli.recipe.starter_base import fitted_to_base
from qlora_cli.recipe.stored_rules import check_stored

CHOSEN = StarterValues(
    r=Choice("8", "small"),
    lora_alpha=Choice("16", "twice r"),
    max_length=Choice("1024", "short"),
    learning_rate=Choice("1.0e-4", "above 13B"),
    per_device_train_batch_size=Choice("2", "fits"),
    gradient_accumulation_steps=Choice("8", "16 rows"),
    planned="Planned for a card: " + "so much memory, " * 12,
)


def test_chosen_values_are_those_of_the_recipe(tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text(starter_text(path, "some/base", "rows.jsonl", CHOSEN), encoding="utf-8")
    recipe = load_recipe(path)
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.data.max_length) == (8, 16.0, 1024)
    training = recipe.training
    assert (training.learning_rate, training.per_device_train_batch_size) == (1e-4, 2)
    assert training.gradient_accumulation_steps == 8


def test_a_base_in_integers_gets_the_section_that_it_is_trained_with(tmp_path):
    section = {"quant_method": "qlora_int", "bits": 3, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": section}))
    values = fitted_to_base(StarterValues(), str(tmp_path))
    recipe = yaml.safe_load(starter_text(tmp_path / "r.yaml", str(tmp_path), "rows.jsonl", values))
    assert recipe["quantization"] == {"method": "int"}
    assert recipe["lora"]["use_qalora"] is True
    assert list(check_stored({"quantization_config": section}, recipe)) == []


def test_each_choice_is_followed_by_its_reason_and_the_plan_is_a_comment():
    text = starter_text(Path("new.yaml"), "some/base", "rows.jsonl", CHOSEN)
    for choice in vars(CHOSEN).values():
        if isinstance(choice, Choice):
            assert f": {choice.value} " in text
            assert f"# {choice.why}\n" in text
    planned = [line for line in text.splitlines() if "so much memory" in line]
    assert len(planned) > 1
    assert all(line.startswith("# ") and len(line) <= 118 for line in planned)
