"""What may change between two sessions of a run, and what may not."""

from __future__ import annotations

import pytest

from qlora_cli.errors import IdentityError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import write_manifest
from qlora_cli.train.resume import changed_keys, check_same_ground


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
def test_a_key_that_changes_what_is_computed_is_named(small_recipe, change):
    [section] = change
    changed = [key for key, _, _ in changed_keys(small_recipe(), small_recipe(**change))]
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
def test_a_key_that_changes_only_what_is_written_may_change(small_recipe, change):
    assert changed_keys(small_recipe(), small_recipe(**change)) == []


@pytest.mark.parametrize("section", [None, "x", [], {}, {"fingerprint": None}, {"fingerprint": "other"}])
def test_a_manifest_that_says_nothing_of_the_base_or_another_one_is_refused(tmp_path, section):
    run = RunDirectory(tmp_path)
    write_manifest(run, {"base": {"fingerprint": "same"}})
    check_same_ground(run, {"base": {"fingerprint": "same"}})
    write_manifest(run, {"base": section})
    with pytest.raises(IdentityError, match="base"):
        check_same_ground(run, {"base": {"fingerprint": "same"}})
