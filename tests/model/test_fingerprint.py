"""A base is known by its weights."""

from __future__ import annotations

import shutil

import pytest

from qlora_cli.errors import IdentityError
from qlora_cli.model.fingerprint import fingerprint_base
from qlora_cli.recipe.schema import ModelSection
from tests.tiny_models import tiny_llama


def fingerprint(folder):
    return fingerprint_base(ModelSection(base_model=str(folder)))


def test_a_copy_has_the_same_fingerprint_and_other_weights_another(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(tiny_base)
    tiny_llama(260, seed=1).save_pretrained(tmp_path / "other")
    assert fingerprint(tmp_path / "other") != fingerprint(tiny_base)


def test_a_base_that_is_not_on_this_machine_is_refused_with_the_command_that_fetches_it():
    with pytest.raises(IdentityError, match="not on this machine") as caught:
        fingerprint("nobody/nothing")
    assert "hf download nobody/nothing" in caught.value.problems[0].hint


def test_a_second_copy_of_the_weights_under_another_name_does_not_count(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "copy")
    shutil.copy(tmp_path / "copy" / "model.safetensors", tmp_path / "copy" / "consolidated.safetensors")
    assert fingerprint(tmp_path / "copy") == fingerprint(tiny_base)


def test_a_sharded_base_is_known_by_every_shard(tmp_path):
    model = tiny_llama(260)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    before = fingerprint(tmp_path)
    last = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert fingerprint(tmp_path) != before
