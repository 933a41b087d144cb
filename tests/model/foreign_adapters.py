"""Adapters as other programs make them, on a tiny base: PEFT's methods, LoRA's options, and odd configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

ATTENTION = ["q_proj", "v_proj"]


def method(name: str, **options: Any) -> peft.PeftConfig:
    """Another method than LoRA."""
    return getattr(peft, f"{name}Config")(task_type="CAUSAL_LM", **options)


def lora(**options: Any) -> peft.LoraConfig:
    """LoRA on q_proj and v_proj."""
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **{"target_modules": ATTENTION, **options})


LORAS = {
    "plain": lora(),
    "all-linear": lora(target_modules="all-linear"),
    "regex targets": lora(target_modules=r".*layers\.1\..*(q|v)_proj"),
    "rank and alpha patterns": lora(
        rank_pattern={"layers.0.self_attn.q_proj": 2}, alpha_pattern={"^model.layers.1.*v_proj": 64}
    ),
    "layers_to_transform": lora(layers_to_transform=[1], layers_pattern="layers"),
    "exclude_modules": lora(target_modules="all-linear", exclude_modules=["down_proj"]),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "bias all": lora(bias="all"),
    "bias lora_only": lora(bias="lora_only"),
    "lora_bias": lora(lora_bias=True),
    "qalora": lora(use_qalora=True, qalora_group_size=16),
    "target_parameters": lora(target_modules=[], target_parameters=["q_proj.weight"]),
    "embedding": lora(target_modules=["embed_tokens", "q_proj"]),
    "head": lora(target_modules=["lm_head"]),
    "modules_to_save embeddings": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "modules_to_save norm": lora(modules_to_save=["norm"]),
    "trainable_token_indices": lora(trainable_token_indices=[5, 6]),
    "trainable_token_indices of two": lora(trainable_token_indices={"embed_tokens": [5], "lm_head": [6]}),
    "layer_replication": lora(layer_replication=[[0, 2], [1, 2]]),
    "init pissa": lora(init_lora_weights="pissa"),
    "init olora": lora(init_lora_weights="olora"),
    "init mica": lora(init_lora_weights="mica"),
    "init eva": lora(init_lora_weights="eva"),
    "init orthogonal": lora(init_lora_weights="orthogonal"),
    "init gaussian": lora(init_lora_weights="gaussian"),
}

METHODS = {
    "AdaLora": method("AdaLora", target_modules=ATTENTION, total_step=10),
    "IA3": method("IA3", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": method("LoHa", target_modules=ATTENTION),
    "LoKr": method("LoKr", target_modules=ATTENTION),
    "OFT": method("OFT", target_modules=ATTENTION, oft_block_size=32, r=0),
    "BOFT": method("BOFT", target_modules=["q_proj"], boft_block_size=4),
    "Vera": method("Vera", target_modules=["q_proj"]),
    "VBLoRA": method("VBLoRA", target_modules=ATTENTION, num_vectors=16, vector_length=32),
    "FourierFT": method("FourierFT", target_modules=ATTENTION, n_frequency=50),
    "HRA": method("HRA", target_modules=ATTENTION),
    "LNTuning": method("LNTuning", target_modules=["input_layernorm"]),
    "TrainableTokens": method("TrainableTokens", token_indices=[5, 6]),
    "RandLora": method("RandLora", target_modules=ATTENTION),
    "C3A": method("C3A", target_modules=ATTENTION, block_size=32),
    "WaveFT": method("WaveFT", target_modules=ATTENTION, n_frequency=50),
    "Miss": method("Miss", target_modules=ATTENTION),
    "DeLora": method("Delora", target_modules=ATTENTION),
    "PromptTuning": method("PromptTuning", num_virtual_tokens=4),
    "PromptEncoder": method("PromptEncoder", num_virtual_tokens=4, encoder_hidden_size=32),
    "PrefixTuning": method("PrefixTuning", num_virtual_tokens=4),
    "CPT": method("CPT", cpt_token_ids=[1, 2, 3], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]),
    "AdaptionPrompt": method("AdaptionPrompt", adapter_len=4, adapter_layers=1),
}

ADAPTERS = LORAS | METHODS


def save_adapter_of(
    base: Path, config: peft.PeftConfig, folder: Path, *, rows: int | None = None, std: float = 0.5
) -> Path:
    """The adapter on `base` (with `rows` embeddings, if given), moved from its start, as PEFT saves it."""
    torch.manual_seed(0)
    model = plain_base(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * std
    tuned.save_pretrained(folder)
    return folder


def plain_base(base: Path) -> PreTrainedModel:
    """The base in float32."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def change_config(folder: Path, **changes: Any) -> None:
    """Write other values into adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


PEFT_0_18 = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "loftq_config": {},
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "peft_version": "0.18.1",
    "qalora_group_size": 16,
    "rank_pattern": {},
}
"""Keys as PEFT 0.18 and 0.19 write them."""

SHAPES: dict[str, dict[str, Any]] = {
    "alpaca-lora of 2023": {"enable_lora": None, "merge_weights": False},
    "unsloth": PEFT_0_18
    | {
        "auto_mapping": {
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
        },
        "base_model_name_or_path": "unsloth/llama-3.2-3b-instruct-bnb-4bit",
        "lora_dropout": 0,
        "unsloth_fixed": True,
    },
    "LLaMA-Factory": PEFT_0_18
    | {"base_model_name_or_path": "/root/autodl-tmp/models/glm-4-9b-chat", "task_type": "SEQ_2_SEQ_LM"},
    "ms-swift": PEFT_0_18
    | {"target_modules": r"^(model(?=\.).*\.(q_proj|v_proj))$", "modules_to_save": [], "task_type": "CAUSAL_LM"},
    "a pattern that looks behind": PEFT_0_18 | {"target_modules": "^(?!.*visual).*(?:v_proj|q_proj).*"},
    "axolotl": PEFT_0_18 | {"base_model_name_or_path": "./outputs/base", "modules_to_save": None, "task_type": None},
    "a newer PEFT": PEFT_0_18 | {"peft_version": "0.99.0", "a_key_of_the_future": {"x": 1}},
    "target_modules in another order": {"target_modules": ["v_proj", "q_proj", "in_proj_qkv", "attn.proj"]},
}
"""What adapter_config.json says beside or instead of PEFT's own words, as published adapters have it.

Sources: KZ-Shi/LLaMA-E, Ey-luccas/chatbot_unsloth, EDLlyc/kangya-glm4-lora, AnHuanAo/qwythos-9b-math-sft on GitHub.
"""
