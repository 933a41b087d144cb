"""Figures that others measured on GPUs, with their settings: the table `points` of docs/memory.md."""

from __future__ import annotations

from dataclasses import dataclass

from memory_bases import BASES, llama, traced
from transformers import (
    ApertusConfig,
    ArceeConfig,
    Glm4MoeLiteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo3Config,
    PreTrainedConfig,
    Qwen3Config,
    SeedOssConfig,
)

from qlora_cli.plan.trace.live_memory import MemoryKind

BYTES_A_LOGIT = 10
"""bfloat16, a float32 copy and its log-softmax."""

AXOLOTL = (
    "lora.r=32",
    "lora.lora_dropout=0.05",
    "training.per_device_train_batch_size=2",
    "training.optim=adamw_8bit",
)
"""Settings of the QLoRA examples of axolotl-ai-cloud/axolotl: 2 x 2,048 packed, checkpointing, flash attention 2."""

LITGPT = (
    "lora.r=32",
    "lora.target_modules=[q_proj,v_proj]",
    "training.per_device_train_batch_size=2",
    "data.max_length=512",
    "training.gradient_checkpointing=false",
)


def _mistral(layers: int, hidden: int, intermediate: int, vocabulary: int) -> PreTrainedConfig:
    return MistralConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        sliding_window=None,
    )


def _glm() -> PreTrainedConfig:
    return Glm4MoeLiteConfig(
        vocab_size=154_880,
        hidden_size=2048,
        intermediate_size=10_240,
        moe_intermediate_size=1536,
        num_hidden_layers=47,
        num_attention_heads=20,
        num_key_value_heads=20,
        n_routed_experts=64,
        num_experts_per_tok=4,
        first_k_dense_replace=1,
        q_lora_rank=768,
        kv_lora_rank=512,
        qk_nope_head_dim=192,
        qk_rope_head_dim=64,
        v_head_dim=256,
    )


POINT_BASES = {
    "qwen3-4b": lambda: llama(151_936, 2560, 9728, 36, 32, 8, Qwen3Config, tie_word_embeddings=True, head_dim=128),
    "ministral-8b": lambda: _mistral(36, 4096, 12_288, 131_072),
    "seed-oss-36b": lambda: llama(155_136, 5120, 27_648, 64, 80, 8, SeedOssConfig, head_dim=128),
    "mistral-24b": lambda: _mistral(40, 5120, 32_768, 131_072),
    "afm-4.5b": lambda: llama(128_004, 2560, 18_432, 36, 20, 4, ArceeConfig, head_dim=128),
    "olmo3-7b": lambda: llama(100_278, 4096, 11_008, 32, 32, 32, Olmo3Config),
    "apertus-8b": lambda: llama(131_072, 4096, 21_504, 32, 32, 8, ApertusConfig),
    "apertus-8b-silu": lambda: llama(131_072, 4096, 21_504, 32, 32, 8, ApertusConfig, hidden_act="silu"),
    "glm-4.7-flash": _glm,
    "llama-3.2-3b": lambda: llama(128_256, 3072, 8192, 28, 24, 8, LlamaConfig, tie_word_embeddings=True, head_dim=128),
    "mistral-7b": lambda: _mistral(32, 4096, 14_336, 32_000),
}
BASES.update(POINT_BASES)


@dataclass(frozen=True)
class Point:
    """A figure of somebody else's."""

    source: str
    base: str
    settings: tuple[str, ...]
    measured: str
    """As it was published."""

    reading: str
    """What makes the difference."""

    whole_logits: bool = False
    """Whether to add, in a third figure, the logits that a loss without tiles holds."""


POINTS = (
    Point("axolotl, plano", "qwen3-4b", AXOLOTL, "5.1 GiB", "agrees"),
    Point("axolotl, ministral", "ministral-8b", AXOLOTL, "8.76 GiB", "agrees"),
    Point("axolotl, seed-oss", "seed-oss-36b", AXOLOTL, "27.7 GiB", "agrees"),
    Point(
        "axolotl, devstral",
        "mistral-24b",
        ("lora.r=32", "training.per_device_train_batch_size=2", "training.optim=adamw_torch"),
        "21 GB",
        "agrees",
    ),
    Point(
        "axolotl, magistral",
        "mistral-24b",
        AXOLOTL,
        "24 GB",
        "the step of the line above with less optimizer state, so it cannot take more by itself; with all logits "
        "at once it would take this much",
        whole_logits=True,
    ),
    Point(
        "axolotl, arcee",
        "afm-4.5b",
        AXOLOTL,
        "7.8 GiB",
        "open: 7.5 with norms in float32, as PEFT's preparation for k-bit training leaves them; here they stay as "
        "they are stored",
        whole_logits=True,
    ),
    Point(
        "axolotl, olmo3", "olmo3-7b", AXOLOTL, "11.3 GiB", "open; all logits at once come nearest", whole_logits=True
    ),
    Point(
        "axolotl, apertus",
        "apertus-8b",
        AXOLOTL,
        "8.7 GiB",
        "they install a CUDA kernel for the xIELU activation, which keeps its input alone; without it, as planned "
        "here, transformers computes it in Python. The next line has an activation that keeps as little",
    ),
    Point("the same", "apertus-8b-silu", AXOLOTL, "8.7 GiB", "agrees"),
    Point(
        "axolotl, glm47-flash",
        "glm-4.7-flash",
        (
            "lora.r=32",
            "lora.target_modules=[o_proj]",
            "training.per_device_train_batch_size=2",
            "training.optim=adamw_8bit",
            "model.attn_implementation=flash_attention_2",
        ),
        "~24 GiB",
        "open: of the four names that they target this base has o_proj; experts are in 4 bit in both",
    ),
    Point(
        "torchtune, README",
        "llama-3.1-8b",
        ("lora.r=8", "training.per_device_train_batch_size=2"),
        "7.4 GB allocated",
        "agrees",
    ),
    Point(
        "torchtune, README",
        "llama-3.2-3b",
        (
            "lora.r=64",
            "training.per_device_train_batch_size=2",
            "data.max_length=4096",
            "training.activation_offloading=true",
        ),
        "4.6 GB active",
        "agrees, if GB is 10^9",
    ),
    Point(
        "torchtune, docs",
        "llama-2-7b",
        ("lora.r=8", "training.per_device_train_batch_size=2"),
        "9.29 GB",
        "theirs is the peak while loading (9.13 by itself), where whole weights are quantized on the GPU; here it "
        "is one layer at a time",
    ),
    Point("litgpt", "mistral-7b", LITGPT, "14.29 GB", "open: another model code, without checkpointing"),
    Point("litgpt", "llama-2-7b", LITGPT, "13.68 GB", "open: the same"),
    Point(
        "fitcheck-llm, T4",
        "mistral-7b",
        ("data.max_length=1024",),
        "5.91 GiB allocated",
        "embeddings and head in float32 (0.49 GiB) and all logits at once in theirs: together 5.6",
        whole_logits=True,
    ),
    Point(
        "unsloth, docs",
        "llama-3.1-8b",
        ("lora.r=32", "data.max_length=5789"),
        "the longest row in 24 GB",
        "all logits at once, and their gradients, in theirs: 6 bytes more for each",
        whole_logits=True,
    ),
    Point(
        "unsloth, docs",
        "llama-3.1-70b",
        ("lora.r=32", "data.max_length=6916"),
        "the longest row in 80 GB",
        "the same",
        whole_logits=True,
    ),
)


def point_row(point: Point) -> tuple[str, ...]:
    """One line of the table; planned GiB are those of tensors, then those that the allocator reserves."""
    budget = traced(point.base, *point.settings)
    planned = f"{budget.needs.allocated_bytes / 2**30:.2f} / {budget.needs.reserved_bytes / 2**30:.2f}"
    return (point.source, point.base, point.measured, planned, _with_logits(point), point.reading)


def _with_logits(point: Point) -> str:
    """GiB when the loss begins, with all logits: what stays over the step, layer inputs, logits."""
    if not point.whole_logits:
        return "-"
    budget, config = traced(point.base, *point.settings), BASES[point.base]()
    settings = dict(each.split("=") for each in point.settings)
    rows = int(settings.get("training.per_device_train_batch_size", 1))
    tokens = rows * int(settings.get("data.max_length", 2048))
    moving = (MemoryKind.ACTIVATIONS, MemoryKind.LOSS, MemoryKind.DEQUANTIZED, MemoryKind.TEMPORARY)
    staying = sum(size for kind, size in budget.peak.by_kind.items() if kind not in moving)
    inputs = tokens * config.num_hidden_layers * config.hidden_size * 2
    return f"{(staying + inputs + tokens * config.vocab_size * BYTES_A_LOGIT) / 2**30:.1f}"
