"""Tiny bases of many architectures, the requests that plan them, and real models to hold the plans against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Glm4Config,
    GPT2Config,
    GptOssConfig,
    GraniteMoeConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from trl.trainer.utils import add_fused_lm_head

from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.recipe.schema import Recipe

CPU = Device("cpu")
AMPERE = Device("cuda", (8, 0))

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=32),
    "mistral": lambda: MistralConfig(**SIZES),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=64),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=32, sliding_window=64),
    "phi3": lambda: Phi3Config(**SIZES),
    "gpt2": lambda: GPT2Config(
        vocab_size=512, n_embd=128, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
    ),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SIZES, head_dim=32, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2
    ),
    "falcon": lambda: FalconConfig(
        vocab_size=512, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, bos_token_id=1, eos_token_id=2
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "glm4": lambda: Glm4Config(**SIZES, head_dim=32),
    "granitemoe": lambda: GraniteMoeConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.01
    ),
    "llama4": lambda: Llama4TextConfig(
        **SIZES, head_dim=32, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=64
    ),
    "phimoe": lambda: PhimoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": lambda: GptOssConfig(
        **SIZES, head_dim=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=64
    ),
    "gemma4_moe": lambda: Gemma4TextConfig(
        **SIZES,
        head_dim=32,
        global_head_dim=32,
        layer_types=["full_attention"] * SIZES["num_hidden_layers"],
        sliding_window=64,
        vocab_size_per_layer_input=512,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=64,
    ),
    "qwen3_5": lambda: Qwen3_5TextConfig(
        **{**SIZES, "head_dim": 32, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
        linear_num_key_heads=4,
        linear_num_value_heads=4,
    ),
}

NEEDS_EAGER = {"gemma2", "gpt_oss"}
"""Architectures whose attention transformers computes by plain matrix products only."""


def config_of(name: str, num_layers: int = 2) -> PreTrainedConfig:
    """A tiny configuration of the architecture with this many layers, all alike."""
    config = CONFIGS[name]()
    for listed in ("layer_types", "no_rope_layers"):
        if getattr(config, listed, None):
            setattr(config, listed, [getattr(config, listed)[0]] * num_layers)
    if getattr(config, "moe_layers", None):
        config.moe_layers = list(range(num_layers))
    config.num_hidden_layers = num_layers
    return config


def request_for(
    config: PreTrainedConfig, device: Device = CPU, *, quantized: bool = True, **settings: Any
) -> PlanRequest:
    """Two rows of 64 tokens, without dropout in the adapter; settings by recipe key, with `__` for the dot."""
    attention = "eager" if config.model_type in NEEDS_EAGER else "sdpa"
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "model": {"base_model": "tiny", "attn_implementation": attention},
            "quantization": {} if quantized else None,
            "lora": {"lora_dropout": 0.0},
            "data": {"train": "rows.jsonl", "max_length": 64},
            "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1},
        }
    )
    return PlanRequest(recipe, config, device).changed(
        {key.replace("__", "."): value for key, value in settings.items()}
    )


def save_base(folder: Path, config: PreTrainedConfig) -> Path:
    """A folder with random weights of that configuration."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def real_model(request: PlanRequest, folder: Path) -> PeftModel:
    """The model that training would make, with the weights in `folder`."""
    recipe = request.recipe
    section = recipe.model.model_copy(update={"base_model": str(folder)})
    return attach_adapter(load_base(section, recipe.quantization, device=torch.device("cpu")), recipe.lora).train()


def trl_loss(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss and the metrics of `SFTTrainer.compute_loss`, by trl's own fused head."""
    base = model.get_base_model()
    if "fused_lm_head" not in str(base.forward):
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    outputs = model(**batch, use_cache=False, fused_lm_head=True)
    num_tokens = outputs.label_mask.sum()
    (outputs.entropy.detach().sum() / num_tokens).item()
    (outputs.is_top1.sum() / num_tokens).item()
    return -outputs.log_probs.sum() / num_tokens.clamp(min=1)
