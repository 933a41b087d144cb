"""LoRA adapters that PEFT made, with any of its options, merge into the model that plain PEFT makes of them."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from qlora_cli.deploy.merge import MergeOptions, merge_run
from tests.model.foreign_adapters import LORAS, lora, plain_base, save_adapter_of

pytestmark = pytest.mark.slow

IDS = torch.arange(1, 40)[None]
NOT_FOLDED = (
    "lora_bias",
    "trainable_token_indices",
    "trainable_token_indices of two",
    "layer_replication",
    "qalora",
    "init mica",
)


def mean_kl(reference, other):
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.mark.parametrize("name", [name for name in LORAS if name not in NOT_FOLDED])
def test_the_merged_model_is_the_one_that_plain_peft_makes(name, tiny_base, tmp_path):
    adapter = save_adapter_of(tiny_base, LORAS[name], tmp_path / "adapter")
    expected = logits(PeftModel.from_pretrained(plain_base(tiny_base), str(adapter)))
    merged = merge_run(adapter, tmp_path / "merged", MergeOptions(dtype="float32"))
    assert mean_kl(expected, logits(AutoModelForCausalLM.from_pretrained(merged.path))) < 1e-6


def test_an_adapter_with_a_resized_vocabulary_merges_onto_the_resized_base(tiny_base, tmp_path):
    config = lora(modules_to_save=["embed_tokens", "lm_head"])
    adapter = save_adapter_of(tiny_base, config, tmp_path / "adapter", rows=263)
    base = plain_base(tiny_base)
    base.resize_token_embeddings(263)
    expected = logits(PeftModel.from_pretrained(base, str(adapter)))
    merged = merge_run(adapter, tmp_path / "merged", MergeOptions(dtype="float32"))
    plain = AutoModelForCausalLM.from_pretrained(merged.path)
    assert plain.config.vocab_size == 263
    assert mean_kl(expected, logits(plain)) < 1e-6


def test_the_effect_of_a_pissa_made_by_peft_is_measured_against_the_true_base(tiny_base, tmp_path):
    trained = save_adapter_of(tiny_base, lora(init_lora_weights="pissa"), tmp_path / "adapter", std=1e-4)
    merged = merge_run(trained, tmp_path / "merged", MergeOptions(dtype="float32"))
    assert merged.effect.mean_kl < 1e-6  # hardly trained; against the residual it would be the principal part's
