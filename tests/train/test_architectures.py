"""Bases of many architectures go the whole way: trained, stopped, resumed to the same bits, merged and compared.

The last run merges what NF4 trained; merging itself proves that the merged model answers as the tuned one did.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import Session, train_recipe
from tests.conftest import byte_tokenizer
from tests.plan.bases import config_of

NO_DROPOUT = {"lora": {"lora_dropout": 0}}
CASES = {
    "qwen3": {},
    "gemma2": {"model": {"attn_implementation": "eager"}},
    "gemma3": {},
    "phi3": {},
    "gpt2": {},
    "falcon": {"data": {"packing": False}},
    "qwen3_5": {"data": {"packing": False}},
    "qwen3_moe": NO_DROPOUT,
    "granitemoe": NO_DROPOUT,
    "deepseek_v3": NO_DROPOUT,
    "llama4": NO_DROPOUT,
    "phimoe": NO_DROPOUT,
}
"""Architecture -> the keys that it needs."""


@pytest.mark.parametrize("name", CASES)
def test_an_architecture_is_trained_resumed_and_merged(small_recipe, tmp_path, name):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config_of(name, num_layers=4 if name == "qwen3_5" else 2))
    base.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    keys = {"model": {}, **CASES[name]}
    keys["model"] = {**keys["model"], "base_model": str(tmp_path / "base")}
    recipe = small_recipe(**keys, quantization={}, training={"max_steps": 2, "gradient_accumulation_steps": 1})
    straight, stopped = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "stopped")
    assert train_recipe(recipe, straight, Session()).is_finished
    train_recipe(recipe, stopped, Session(stop_after=1))
    assert train_recipe(recipe, stopped, Session(resume=True)).is_finished
    weights = [(run.adapter_path / "adapter_model.safetensors").read_bytes() for run in (straight, stopped)]
    assert weights[0] == weights[1]
    merged = merge_run(straight.path, None, MergeOptions(dtype="float32"))
    assert merged.agreement.mean_kl < 1e-7
    assert merged.effect.mean_kl > 100 * merged.agreement.mean_kl
