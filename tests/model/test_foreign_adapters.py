"""Adapters made elsewhere are the model that plain PEFT makes of them, or are refused in one line that is true."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from qlora_cli.errors import QloraError
from qlora_cli.model.adapter import load_adapter
from qlora_cli.model.adapter_kind import ADAPTER_WEIGHTS, read_adapter_kind
from qlora_cli.model.base import load_base
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from tests.model.foreign_adapters import (
    ADAPTERS,
    SHAPES,
    change_config,
    lora,
    method,
    plain_base,
    save_adapter_of,
)

IDS = torch.arange(1, 40)[None]
MAX_KL = 1e-6


def base_of(folder, quantization=None):
    return load_base(ModelSection(base_model=str(folder), dtype="float32"), quantization)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def mean_kl(reference, other):
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def peft_logits(base, folder):
    return logits(PeftModel.from_pretrained(plain_base(base), str(folder)))


def refusal(base, folder, quantization=None):
    """The line and its hint."""
    with pytest.raises(QloraError) as caught:
        load_adapter(base_of(base, quantization), folder)
    (problem,) = caught.value.problems
    assert "\n" not in problem.text
    assert problem.hint
    return problem


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_any_kind_is_the_model_that_plain_peft_makes_of_it(name, tiny_base, tmp_path):
    save_adapter_of(tiny_base, ADAPTERS[name], tmp_path)
    expected = peft_logits(tiny_base, tmp_path)
    assert (logits(plain_base(tiny_base)) - expected[:, -IDS.shape[1] :]).abs().max() > 0.01  # it has an effect
    assert mean_kl(expected, logits(load_adapter(base_of(tiny_base), tmp_path))) < MAX_KL


@pytest.mark.parametrize("name", SHAPES)
def test_odd_configurations_of_published_adapters_load_as_in_plain_peft(name, tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(), tmp_path)
    expected = peft_logits(tiny_base, tmp_path)
    change_config(tmp_path, **SHAPES[name])
    assert mean_kl(expected, logits(load_adapter(base_of(tiny_base), tmp_path))) < MAX_KL


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (method("Poly", target_modules=["q_proj"], r=4), "is Poly, which mixes its skills by a task id"),
        (
            method("MultitaskPromptTuning", num_virtual_tokens=4, num_tasks=2),
            "is multitask prompt tuning, which chooses its virtual tokens by a task id",
        ),
    ],
)
def test_methods_that_a_prompt_does_not_run_are_refused_by_name(config, words, tiny_base, tmp_path):
    save_adapter_of(tiny_base, config, tmp_path)
    assert words in refusal(tiny_base, tmp_path).text


@pytest.mark.parametrize(
    ("changes", "words", "hint"),
    [
        ({"peft_type": "XLORA"}, "is X-LoRA, which mixes other adapters", "from_pretrained"),
        ({"peft_type": "HYPERLORA", "peft_version": "0.99.0"}, "the method HYPERLORA", "PEFT 0.99.0"),
        ({"task_type": "SEQ_CLS"}, "was trained for the task SEQ_CLS", "CAUSAL_LM"),
        ({"init_lora_weights": "corda"}, "starts from corda", "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "starts from lora_ga", "path_initial_model_for_weight_conversion"),
        ({"target_modules": ["query_key_value"]}, "does not fit the base model", "--base-model"),
        ({"r": 7}, "does not fit the base model", "--base-model"),
        (
            {"modules_to_save": ["norm"]},
            "has no weights for base_model.model.model.layers.0.input_layernorm.weight",
            "copy both",
        ),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line_with_the_way_on(changes, words, hint, tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(), tmp_path)
    change_config(tmp_path, **changes)
    problem = refusal(tiny_base, tmp_path)
    assert words in problem.text
    assert hint in problem.hint


@pytest.mark.parametrize("method", ["bitsandbytes", "int"])
@pytest.mark.parametrize("config", [lora(init_lora_weights="pissa"), lora(init_lora_weights="olora")])
def test_an_init_that_changes_the_base_is_refused_on_quantized_weights_with_what_to_type(
    config, method, tiny_base, tmp_path
):
    save_adapter_of(tiny_base, config, tmp_path)
    assert "--quantization none" in refusal(tiny_base, tmp_path, QuantizationSection(method=method)).hint


def test_tensors_that_no_module_takes_are_refused_by_name(tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(target_modules="all-linear"), tmp_path)
    change_config(tmp_path, target_modules=["q_proj", "v_proj"])
    problem = refusal(tiny_base, tmp_path)
    assert "20 of the 28 tensors" in problem.text
    assert "down_proj, gate_proj, k_proj, o_proj, up_proj" in problem.hint


def test_the_magnitude_of_a_dora_whose_config_forgets_it_is_refused(tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(use_dora=True), tmp_path)
    change_config(tmp_path, use_dora=False)
    assert "lora_magnitude_vector" in refusal(tiny_base, tmp_path).text


def test_tensors_that_the_configuration_asks_for_and_that_are_missing_are_told_by_name(tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(), tmp_path)
    change_config(tmp_path, target_modules=["q_proj", "v_proj", "k_proj"])
    assert "has no weights for base_model.model.model.layers.0.self_attn.k_proj" in refusal(tiny_base, tmp_path).text


@pytest.mark.parametrize("rows", [250, 263])
@pytest.mark.parametrize("config", [lora(modules_to_save=["embed_tokens", "lm_head"]), lora()])
def test_a_base_is_resized_to_an_adapter_that_holds_all_rows(config, rows, tiny_base, tmp_path):
    save_adapter_of(tiny_base, config, tmp_path, rows=rows)
    base = plain_base(tiny_base)
    base.resize_token_embeddings(rows)
    expected = logits(PeftModel.from_pretrained(base, str(tmp_path)))
    assert expected.shape[-1] == rows
    assert mean_kl(expected, logits(load_adapter(base_of(tiny_base), tmp_path))) < MAX_KL


def test_adapters_of_single_experts_are_converted_to_the_fused_ones_of_today(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    config = Qwen3MoeConfig(vocab_size=128, max_position_embeddings=128, **sizes, **heads, **experts)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "base")
    targets = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets).save_pretrained(tmp_path / "adapter")
    tensors = {}
    for layer in range(2):
        modules = [f"experts.{expert}.{part}_proj" for expert in range(4) for part in ("gate", "up", "down")]
        for module in ["self_attn.q_proj", *(f"mlp.{module}" for module in modules)]:
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors |= {f"{name}.lora_A.weight": torch.randn(4, 64), f"{name}.lora_B.weight": torch.randn(64, 4)}
    save_file(tensors, tmp_path / "adapter" / ADAPTER_WEIGHTS)
    expected = peft_logits(tmp_path / "base", tmp_path / "adapter")
    assert mean_kl(expected, logits(load_adapter(base_of(tmp_path / "base"), tmp_path / "adapter"))) < MAX_KL


def test_added_tokens_whose_rows_are_in_neither_are_named(tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(target_modules=["lm_head", "q_proj"]), tmp_path, rows=261)
    tensors = {
        name: tensor for name, tensor in load_file(tmp_path / ADAPTER_WEIGHTS).items() if "base_layer" not in name
    }
    save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
    problem = refusal(tiny_base, tmp_path)
    assert "with 2 tokens more than this one's 259" in problem.text
    assert "tokens 259 to 260" in problem.text
    assert "save_embedding_layers=True" in problem.hint


def test_every_factor_keeps_the_precision_it_was_stored_in(tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(), tmp_path)
    stored = load_file(tmp_path / ADAPTER_WEIGHTS)
    base = load_base(ModelSection(base_model=str(tiny_base), dtype="bfloat16"), None)
    loaded = load_adapter(base, tmp_path)
    for name, parameter in loaded.named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, stored[name.replace(".default", "")])


def test_two_loads_of_a_randomized_init_are_the_same_model(tiny_base, tmp_path):
    save_adapter_of(tiny_base, lora(init_lora_weights="pissa_niter_4"), tmp_path)
    first, second = (logits(load_adapter(base_of(tiny_base), tmp_path)) for _ in range(2))
    assert torch.equal(first, second)


def test_the_table_is_long_enough_to_mean_something():
    assert len(ADAPTERS) >= 30
    assert {config.peft_type for config in ADAPTERS.values()} >= {peft.PeftType.LORA, peft.PeftType.IA3}


def test_a_method_is_called_by_its_name(tiny_base, tmp_path):
    save_adapter_of(tiny_base, ADAPTERS["PromptTuning"], tmp_path)
    assert read_adapter_kind(tmp_path).title == "prompt tuning"
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"
