"""Keys of other tools lead to the key used here."""

from __future__ import annotations

import re

import pytest

from qlora_cli.recipe.foreign_keys import FOREIGN_KEYS, foreign_hint
from qlora_cli.recipe.json_schema import all_keys

SCHEMA_KEYS = set(all_keys())
ALL_FOREIGN_KEYS = [key for keys in FOREIGN_KEYS.values() for key in keys]


def quoted_keys(counterpart):
    """The schema keys that a counterpart names: itself, or those that its sentence quotes."""
    if " " not in counterpart:
        return [counterpart]
    return [quoted.split(":")[0] for quoted in re.findall(r"'([^']+)'", counterpart)]


def test_the_table_knows_at_least_a_hundred_keys_and_none_twice():
    assert len(ALL_FOREIGN_KEYS) >= 100
    assert len(set(ALL_FOREIGN_KEYS)) == len(ALL_FOREIGN_KEYS)


@pytest.mark.parametrize("tool", FOREIGN_KEYS)
def test_every_key_that_the_table_leads_to_exists(tool):
    for key, counterpart in FOREIGN_KEYS[tool].items():
        assert set(quoted_keys(counterpart)) <= SCHEMA_KEYS, key


def test_no_key_of_the_schema_is_called_foreign():
    assert not {full.rpartition(".")[2] for full in SCHEMA_KEYS} & set(ALL_FOREIGN_KEYS)


@pytest.mark.parametrize(
    ("key", "counterpart"),
    [
        ("lora_alfa", "lora.lora_alpha"),
        ("micro_batch_size", "training.per_device_train_batch_size"),
        ("cutoff_len", "data.max_length"),
        ("lora_rank", "lora.r"),
        ("load_in_4bit", "quantization.quant_type"),
        ("lora_target_linear", "lora.target_modules"),
        ("wandb_project", "tracking.project"),
        ("sequence_len", "data.max_length"),
        ("model_name_or_path", "model.base_model"),
    ],
)
def test_a_known_key_leads_to_ours(key, counterpart):
    assert f"'{counterpart}" in foreign_hint(key)
