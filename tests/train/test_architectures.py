"""Bases of many architectures, one of them with trained weights, go the whole way: trained, stopped, resumed, merged.

The last run merges what NF4 trained; merging itself proves that the merged model answers as the tuned one did.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from qlora_cli.deploy.export import export_run
from qlora_cli.deploy.export_options import ExportOptions
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.model.bases import MULTIMODAL, save_toy
from tests.plan.bases import config_of
from tests.tiny_models import byte_tokenizer
from tests.turns import in_turn

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
    "gpt_oss": {"model": {"attn_implementation": "eager"}, "data": {"packing": False}},
    "gemma4_moe": {},
}
"""Architecture -> the keys that it needs."""


def save_base(folder, config):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", CASES)
def test_an_architecture_is_trained_resumed_and_merged(small_recipe, tmp_path, name):
    config = config_of(name)
    if name == "qwen3_5":
        config.layer_types = ["linear_attention", "full_attention"]
    go_the_whole_way(small_recipe, tmp_path, config, CASES[name])


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("name", "checkpointing"), in_turn(["mixtral", "llama4", "gpt_oss", "gemma4_moe"], [True, False])
)
def test_adapters_on_experts_in_4_bit_are_trained_resumed_and_merged(
    small_recipe, tmp_path, capsys, name, checkpointing
):
    lora = {"lora_dropout": 0, "target_modules": ["o_proj", "experts.gate_up_proj", "experts.down_proj"]}
    keys = {**CASES.get(name, {}), "lora": lora, "training": {"gradient_checkpointing": checkpointing}}
    run = go_the_whole_way(small_recipe, tmp_path, config_of(name), keys)
    assert any("experts" in key for key in load_file(run.adapter_path / "adapter_model.safetensors"))
    assert "fused weights, in NF4" in capsys.readouterr().err


def go_the_whole_way(small_recipe, tmp_path, config, keys):
    """Train, stop, resume to the same bytes and merge to the same model; the run that was not stopped."""
    base = save_base(tmp_path / "base", config)
    keys = {"model": {}, "training": {}, **keys}
    keys["model"] = {**keys["model"], "base_model": base}
    keys["training"] = {"max_steps": 2, "gradient_accumulation_steps": 1, **keys["training"]}
    recipe = small_recipe(**keys, quantization={})
    straight, stopped = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "stopped")
    assert train_recipe(recipe, straight, TrainOptions()).is_finished
    train_recipe(recipe, stopped, TrainOptions(stop_after=1))
    assert train_recipe(recipe, stopped, TrainOptions(resume=True)).is_finished
    weights = [(run.adapter_path / "adapter_model.safetensors").read_bytes() for run in (straight, stopped)]
    assert weights[0] == weights[1]
    merged = merge_run(straight.path, None, MergeOptions(dtype="float32"))
    assert merged.agreement.mean_kl < 1e-7
    assert merged.effect.mean_kl > 100 * merged.agreement.mean_kl
    assert ("experts included" in merged.onto_in_words) == any(each in config.model_type for each in MIXTURES)
    return straight


UNPACKED = {"qwen3_5_vl", "qwen3_5_moe_vl", "qwen2_5_vl"}
"""Bases that keep packed documents apart by no mask; training refuses to pack for them."""


@pytest.mark.every(3)
@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_base_with_a_vision_tower_is_tuned_on_text_and_merged_into_its_own_checkpoint(small_recipe, tmp_path, name):
    base = save_toy(name, tmp_path / "base")
    recipe = small_recipe(
        **NO_DROPOUT,
        model={"base_model": str(base)},
        quantization={},
        data={"packing": name not in UNPACKED},
        training={"max_steps": 2, "gradient_accumulation_steps": 1},
    )
    straight, stopped = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "stopped")
    assert train_recipe(recipe, straight, TrainOptions()).is_finished
    train_recipe(recipe, stopped, TrainOptions(stop_after=1))
    assert train_recipe(recipe, stopped, TrainOptions(resume=True)).is_finished
    weights = [(run.adapter_path / "adapter_model.safetensors").read_bytes() for run in (straight, stopped)]
    assert weights[0] == weights[1]
    trained = load_file(straight.adapter_path / "adapter_model.safetensors")
    assert [key for key, tensor in trained.items() if not tensor.any()] == []
    merged = merge_run(straight.path, None, MergeOptions(dtype="float32"))
    assert merged.effect.mean_kl > 100 * merged.agreement.mean_kl
    whole, report = AutoModelForMultimodalLM.from_pretrained(straight.merged_path, output_loading_info=True)
    assert type(whole).__name__ == type(MULTIMODAL[name]()).__name__
    assert not report["missing_keys"]


MIXTURES = ("moe", "mixtral", "llama4", "gpt_oss", "deepseek", "gemma4")
"""Parts of the names of those whose experts are fused."""

STORED = {
    "nf4": {"quantization": {}},
    "int8": {"quantization": {"quant_type": "int8"}},
    "int8 in bf16, unpacked": {
        "quantization": {"quant_type": "int8"},
        "model": {"dtype": "bfloat16"},
        "data": {"packing": False},
    },
}
"""How trained weights are stored -> the keys for it."""


@pytest.mark.parametrize("name", STORED)
def test_trained_weights_go_the_whole_way_however_they_are_stored(small_recipe, trained_base, tmp_path, name):
    keys = {"model": {}, **STORED[name]}
    keys["model"] = {**keys["model"], "base_model": str(trained_base)}
    recipe = small_recipe(**keys, training={"max_steps": 2, "gradient_accumulation_steps": 1})
    straight, stopped = RunDirectory(tmp_path / "straight"), RunDirectory(tmp_path / "stopped")
    assert train_recipe(recipe, straight, TrainOptions()).is_finished
    train_recipe(recipe, stopped, TrainOptions(stop_after=1))
    assert train_recipe(recipe, stopped, TrainOptions(resume=True)).is_finished
    weights = [(run.adapter_path / "adapter_model.safetensors").read_bytes() for run in (straight, stopped)]
    assert weights[0] == weights[1]
    merged = merge_run(straight.path, None, MergeOptions())
    assert merged.effect.mean_kl > 100 * merged.agreement.mean_kl
    assert export_run(straight.path, tmp_path / "exported", ExportOptions()).agreement.mean_kl < 1e-3


@pytest.mark.parametrize("name", ["qwen3_moe", "granitemoe"])
def test_the_loss_of_a_mixture_is_that_of_its_tokens_however_a_step_is_cut(small_recipe, tmp_path, name):
    """A loss that balances its experts is a mean over the rows of a pass, and so another one for other passes."""
    config = config_of(name)
    config.router_aux_loss_coef = 1.0
    losses, adapters = [], []
    for rows, passes in ((4, 1), (1, 4)):
        run = RunDirectory(tmp_path / f"{rows}-rows")
        training = {"max_steps": 1, "per_device_train_batch_size": rows, "gradient_accumulation_steps": passes}
        base = save_base(tmp_path / "base", config)
        train_recipe(small_recipe(**NO_DROPOUT, model={"base_model": base}, training=training), run, TrainOptions())
        losses.append(read_metrics(run.metrics_path)[0]["loss"])
        adapters.append(load_file(run.checkpoints_path / "step-000001" / "optimizer.safetensors"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for key, moments in adapters[0].items():
        assert torch.allclose(moments.float(), adapters[1][key].float(), atol=1e-6), key
