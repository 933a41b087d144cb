"""LoRA adapters that PEFT made, with any of its options, merge into the model that plain PEFT makes of them."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import ArgumentError, NumericError
from qlora_cli.model.tuned import choose_tuned
from tests.deploy.models import load_base, save_tokenizer
from tests.model.foreign_adapters import LORAS, METHODS, lora, method, plain_base, save_adapter_of

pytestmark = pytest.mark.slow

IDS = torch.arange(1, 40)[None]
NOT_FOLDED = ("layer_replication", "qalora", "init mica")
FOLDED = {
    **{name: config for name, config in LORAS.items() if name not in NOT_FOLDED},
    **{name: METHODS[name] for name in ("AdaLora", "TrainableTokens")},
    "lora_bias on all": lora(target_modules="all-linear", lora_bias=True),
    "lora_bias and bias": lora(lora_bias=True, bias="lora_only"),
}


def mean_kl(reference, other):
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.mark.every(3)
@pytest.mark.parametrize("name", FOLDED)
def test_the_merged_model_is_the_one_that_plain_peft_makes(name, tiny_base, tmp_path):
    adapter = save_adapter_of(tiny_base, FOLDED[name], tmp_path / "adapter")
    expected = logits(PeftModel.from_pretrained(plain_base(tiny_base), str(adapter)))
    merged = merge_run(adapter, tmp_path / "merged", MergeOptions(dtype="float32"))
    assert mean_kl(expected, logits(AutoModelForCausalLM.from_pretrained(merged.path))) < 1e-6


PARTS = {
    "adalora": METHODS["AdaLora"],
    "lora_bias": lora(lora_bias=True),
    "tokens": lora(trainable_token_indices=[5, 6]),
    "tokens of the head alone": lora(trainable_token_indices={"lm_head": [6]}),
    "tokens of both": lora(trainable_token_indices={"embed_tokens": [5], "lm_head": [6]}),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("base", ["llama_folder", "tied_llama_folder"])
def test_onto_an_nf4_base_the_merge_is_the_adapter_on_the_dequantized_one(name, base, tmp_path, request):
    base = request.getfixturevalue(base)
    adapter = save_adapter_of(base, PARTS[name], tmp_path / "adapter")
    expected = logits(PeftModel.from_pretrained(load_base(base, "nf4").dequantize(), str(adapter)))
    before = logits(load_base(base, "nf4"))
    source = choose_tuned(adapter, None, None, "nf4", ["model.dtype=float32"])
    merged = merge_run(source, tmp_path / "merged", MergeOptions(dtype="float32"))
    assert mean_kl(expected, before) > 1e-3
    assert mean_kl(expected, logits(AutoModelForCausalLM.from_pretrained(merged.path))) < 1e-6


@pytest.mark.parametrize("name", [name for name in PARTS if name != "lora_bias"])
def test_peft_merges_into_the_same_model(name, llama_folder, tmp_path):
    """But for `lora_bias`, which it does not merge, and tied tables, of which it changes both for a row of one."""
    adapter = save_adapter_of(llama_folder, PARTS[name], tmp_path / "adapter")
    expected = logits(PeftModel.from_pretrained(plain_base(llama_folder), str(adapter)).merge_and_unload())
    merged = merge_run(adapter, tmp_path / "merged", MergeOptions(dtype="float32"))
    assert mean_kl(expected, logits(AutoModelForCausalLM.from_pretrained(merged.path))) < 1e-6


RESIZED = {
    "all saved": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "none trained": lora(),
    "single rows": lora(trainable_token_indices=[5, *range(264, 270)]),
    "tied": lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "low-rank on the embedding": lora(target_modules=["embed_tokens", "q_proj"]),
}


ON_BASES = [(name, base) for name in RESIZED for base in ("llama_folder", "tied_llama_folder")]
ON_BASES.remove(("low-rank on the embedding", "llama_folder"))  # PEFT saves no head with it


@pytest.mark.parametrize(("name", "base"), ON_BASES)
def test_an_adapter_with_a_resized_vocabulary_merges_onto_the_resized_base(name, base, tmp_path, request):
    base = request.getfixturevalue(base)
    adapter = save_adapter_of(base, RESIZED[name], tmp_path / "adapter", rows=270)
    model = plain_base(base)
    model.resize_token_embeddings(270)
    expected = logits(PeftModel.from_pretrained(model, str(adapter)))
    merged = merge_run(adapter, tmp_path / "merged", MergeOptions(dtype="float32"))
    plain = AutoModelForCausalLM.from_pretrained(merged.path)
    assert plain.config.vocab_size == 270
    assert mean_kl(expected, logits(plain)) < 1e-6


def test_an_adalora_that_was_pruned_in_training_merges(llama_folder, tmp_path):
    schedule = {"init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 1, "total_step": 8}
    tuned = peft.get_peft_model(plain_base(llama_folder), method("AdaLora", target_modules=["q_proj"], **schedule))
    optimizer = torch.optim.AdamW([each for each in tuned.parameters() if each.requires_grad], lr=0.05)
    for step in range(8):
        tuned(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        tuned.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    tuned.save_pretrained(tmp_path / "adapter")
    assert {sum(kept) for kept in tuned.peft_config["default"].rank_pattern.values()} != {6}
    merged = merge_run(tmp_path / "adapter", tmp_path / "merged", MergeOptions(dtype="float32"))
    assert merged.effect.mean_kl > 1e-3
    assert mean_kl(logits(tuned), logits(AutoModelForCausalLM.from_pretrained(merged.path))) < 1e-6


def test_biases_that_the_base_lacks_are_added_and_everything_else_is_the_bases(llama_folder, tmp_path):
    adapter = save_adapter_of(llama_folder, lora(lora_bias=True), tmp_path / "adapter")
    merged = merge_run(adapter, tmp_path / "merged", MergeOptions())
    before, after = load_file(llama_folder / "model.safetensors"), load_file(merged.path / "model.safetensors")
    parts = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(2) for part in "qkvo"]
    assert after.keys() - before.keys() == {f"{part}.bias" for part in parts}
    assert not any(torch.count_nonzero(after[f"{part}.bias"]) for part in parts if part[-6] in "ko")
    trained = {f"{part}.weight" for part in parts if part[-6] in "qv"}
    assert {key for key in before if not torch.equal(before[key], after[key])} == trained
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (llama_folder, merged.path))
    assert {key for key in old if old[key] != new[key]} == {"attention_bias"}
    assert merged.num_tensors["added"] == 8


def save_small(kind, config, folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    kind(config(vocab_size=264, initializer_range=0.2, **sizes, **heads)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_biases_are_added_to_those_that_the_base_has(tmp_path):
    base = save_small(Qwen2ForCausalLM, Qwen2Config, tmp_path / "base")
    adapter = save_adapter_of(base, lora(lora_bias=True), tmp_path / "adapter")
    expected = logits(PeftModel.from_pretrained(plain_base(base), str(adapter)).merge_and_unload())
    merged = merge_run(adapter, tmp_path / "merged", MergeOptions(dtype="float32"))
    assert mean_kl(expected, logits(AutoModelForCausalLM.from_pretrained(merged.path))) < 1e-6
    assert "added" not in merged.num_tensors


@pytest.mark.parametrize(
    ("kind", "config", "target"),
    [(MistralForCausalLM, MistralConfig, "q_proj"), (Qwen2ForCausalLM, Qwen2Config, "o_proj")],
)
def test_a_bias_for_which_the_configuration_has_no_key_is_refused_by_name(kind, config, target, tmp_path):
    base = save_small(kind, config, tmp_path / "base")
    adapter = save_adapter_of(base, lora(lora_bias=True, target_modules=[target]), tmp_path / "adapter")
    with pytest.raises(
        ArgumentError, match=rf"no key of {config.__name__} gives one to 'model.layers.0.self_attn.{target}'"
    ):
        merge_run(adapter, tmp_path / "merged", MergeOptions())
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("config", [METHODS["AdaLora"], METHODS["TrainableTokens"]])
def test_an_adapter_of_another_method_that_was_not_trained_is_inert(config, llama_folder, tmp_path):
    adapter = save_adapter_of(llama_folder, config, tmp_path / "adapter", std=0.0)
    with pytest.raises(NumericError, match=r"is inert: (all 4 of its E vectors are zero|its tokens have the rows)"):
        merge_run(adapter, tmp_path / "merged", MergeOptions())


def test_the_effect_of_a_pissa_made_by_peft_is_measured_against_the_true_base(tiny_base, tmp_path):
    trained = save_adapter_of(tiny_base, lora(init_lora_weights="pissa"), tmp_path / "adapter", std=1e-4)
    merged = merge_run(trained, tmp_path / "merged", MergeOptions(dtype="float32"))
    assert merged.effect.mean_kl < 1e-6  # hardly trained; against the residual it would be the principal part's
