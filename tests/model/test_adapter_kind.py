"""An adapter folder says what it is before anything is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.model.adapter_kind import ADAPTER_WEIGHTS, read_adapter_kind
from tests.tiny_models import tiny_llama

VOCABULARY = 259


def saved(folder, config, rows=VOCABULARY):
    model = tiny_llama(VOCABULARY)
    if rows != VOCABULARY:
        model.resize_token_embeddings(rows)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def lora(**options):
    return LoraConfig(task_type="CAUSAL_LM", r=4, **{"target_modules": ["q_proj"], **options})


def test_a_plain_lora_has_no_special_part(tmp_path):
    kind = read_adapter_kind(saved(tmp_path, lora()))
    assert (kind.method, kind.is_prompt, kind.changes_base, kind.vocabulary) == ("LORA", False, False, None)
    assert kind.shapes["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] == (4, 64)


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"use_dora": True}, "variant", None),
        ({"use_qalora": True, "qalora_group_size": 16}, "variant", "QA-LoRA"),
        ({"init_lora_weights": "mica"}, "variant", "MiCA"),
        ({"lora_bias": True}, "lora_bias", True),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication", ((0, 2), (1, 2))),
        ({"layer_replication": [[0, 2], [1, 2]]}, "changes_base", True),
        ({"init_lora_weights": "pissa_niter_4"}, "changes_base", True),
        ({"init_lora_weights": "olora"}, "init", "olora"),
        ({"init_lora_weights": "gaussian"}, "changes_base", False),
        ({"trainable_token_indices": [5, 6]}, "trainable_token_indices", {"embed_tokens": (5, 6)}),
        ({"trainable_token_indices": {"lm_head": [7]}}, "trainable_token_indices", {"lm_head": (7,)}),
        ({"target_modules": ["embed_tokens"]}, "vocabulary", VOCABULARY),
        ({"target_modules": ["lm_head"]}, "vocabulary", VOCABULARY),
        (
            {"target_modules": ["lm_head"]},
            "holds_output_head",
            True,
        ),  # PEFT saves the head's own rows beside its update
    ],
)
def test_each_part_of_a_lora_that_is_no_plain_update_is_seen(tmp_path, options, field, value):
    saved(tmp_path, lora(**options))
    assert getattr(read_adapter_kind(tmp_path), field) == value


def test_saved_embeddings_show_the_vocabulary_that_the_adapter_was_trained_on(tmp_path):
    kind = read_adapter_kind(saved(tmp_path, lora(modules_to_save=["embed_tokens", "lm_head"]), rows=263))
    assert (kind.vocabulary, kind.holds_input_embeddings, kind.holds_output_head) == (263, True, True)


def test_virtual_tokens_make_a_prompt_method(tmp_path):
    kind = read_adapter_kind(saved(tmp_path, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)))
    assert (kind.title, kind.is_prompt, kind.num_virtual_tokens) == ("prompt tuning", True, 4)


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"peft_type": None}, "peft_type is None"),
        ({"layer_replication": [[0, 1, 2]]}, "another type"),
        ({"trainable_token_indices": 7}, "another type"),
    ],
)
def test_a_configuration_that_peft_cannot_have_written_is_told_with_its_place(tmp_path, changes, seen):
    path = saved(tmp_path, lora()) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(IdentityError, match=seen) as caught:
        read_adapter_kind(tmp_path)
    assert caught.value.problems[0].place == str(path)


def test_damaged_weights_are_told_with_their_place(tmp_path):
    saved(tmp_path, lora())
    os.truncate(tmp_path / ADAPTER_WEIGHTS, 100)
    with pytest.raises(IdentityError, match="is damaged"):
        read_adapter_kind(tmp_path)


@pytest.mark.slow
def test_the_hint_for_pickled_weights_leads_to_the_same_tensors(tmp_path):
    saved(tmp_path, lora())
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    torch.save(tensors, tmp_path / "adapter_model.bin")
    (tmp_path / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ArgumentError, match="as a pickle") as caught:
        read_adapter_kind(tmp_path)
    command = caught.value.problems[0].hint.partition("`")[2].rstrip("`").replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)
    written = load_file(tmp_path / ADAPTER_WEIGHTS)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
