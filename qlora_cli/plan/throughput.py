"""Time from arithmetic: an estimate, unlike the memory, which is traced.

Operations for one token, where N are the frozen weights that multiply it, A the adapter's, and a multiplication with
its addition is two operations (Kaplan et al. 2020, arXiv:2001.08361, section 2.1):

    forward            2 N + 2 A + attention
    backward           2 N + 4 A + 2 attention     frozen weights pass gradients on and get none
    recomputation      2 N + 2 A + attention       with gradient checkpointing
    attention          4 x layers x length x width of queries; half of it where a causal kernel needs no mask

Quantized weights are also written out in 16 bit before each of these passes, once a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from qlora_cli.plan.machine.gpus import Gpu
from qlora_cli.plan.parameter_counts import ParameterCounts
from qlora_cli.plan.trace.request import PlanRequest

UTILIZATION = 0.35
"""Share of the dense rate that the multiplications are taken to reach; assumed, not measured here. Training in 16 bit
is commonly reported between 0.3 and 0.5."""

PACKED_BYTES = 0.5
WRITTEN_BYTES = 2
"""Bytes a weight that dequantization reads and writes."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations for one token, forward and backward."""

    weights: int
    adapter: int
    attention: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.adapter + self.attention


@dataclass(frozen=True)
class Throughput:
    """Training speed of a GPU, or of several together."""

    tokens_per_second: float
    seconds_per_step: float
    operations: Operations
    card: str
    rate: str
    """Operations a second that were counted on, and where the figure is from."""


def operations_per_token(request: PlanRequest, facts: ParameterCounts, length: int) -> Operations:
    """Operations for a token of a row of `length` tokens.

    Args:
        request: the step.
        facts: parameters of its model.
        length: tokens that attention reaches over.
    """
    is_recomputed = request.recipe.training.gradient_checkpointing
    text = request.config.get_text_config()
    # Later versions of transformers give each layer settings of its own, and refuse to say those that differ globally.
    layers = getattr(text, "per_layer_config", None) or [text] * text.num_hidden_layers
    forward_attention = 4 * length * sum(_attention_width(layer) for layer in layers)
    if not request.has_mask:
        forward_attention //= 2
    return Operations(
        weights=(6 if is_recomputed else 4) * active_weights(request, facts),
        adapter=(8 if is_recomputed else 6) * facts.num_trained,
        attention=(4 if is_recomputed else 3) * forward_attention,
    )


def _attention_width(layer: PreTrainedConfig) -> int:
    """Of all heads together; in some bases it differs from layer to layer."""
    heads: int = layer.num_attention_heads
    return heads * (getattr(layer, "head_dim", None) or layer.hidden_size // heads)


def active_weights(request: PlanRequest, facts: ParameterCounts) -> int:
    """Frozen weights that multiply one token: without the input embedding, and only the experts that it is sent to."""
    text = request.config.get_text_config()
    embedding = 0 if getattr(text, "tie_word_embeddings", False) else text.vocab_size * text.hidden_size
    return facts.num_base - embedding - round(facts.num_in_fused_experts * (1 - _expert_share(text)))


def _expert_share(text: object) -> float:
    """Share of the experts that one token passes through; 1 where there are none."""
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if num_experts := getattr(text, name, None):
            return min(1.0, (getattr(text, "num_experts_per_tok", None) or num_experts) / num_experts)
    return 1.0


def estimate_pace(
    request: PlanRequest, facts: ParameterCounts, card: Gpu, length: int | None = None
) -> Throughput | None:
    """Training speed of `card`; None in float32, for which no rate is known.

    Args:
        request: the step.
        facts: parameters of its model.
        card: where it runs.
        length: tokens a row; by default the recipe's `max_length`.
    """
    if request.dtype is torch.float32:
        return None
    length = length or request.recipe.data.max_length
    operations = operations_per_token(request, facts, length)
    num_tokens = request.batch_size * length
    overheads = request.device.overheads
    tflops = card.dense_tflops * UTILIZATION if overheads is None else overheads.reached_tflops
    told = f"{UTILIZATION:.0%} of {card.dense_tflops:g}" if overheads is None else f"{tflops:,.3g}"
    rate = f"{told} TFLOPS" + ("" if overheads is None else f", {overheads.source}")
    seconds = num_tokens * operations.total / (tflops * 1e12) + moved_bytes(request, facts) / (
        card.bandwidth_gb_s * 1e9
    )
    steps = request.recipe.training.num_passes
    return Throughput(request.device.num_gpus * num_tokens / seconds, seconds * steps, operations, card.name, rate)


def moved_bytes(request: PlanRequest, facts: ParameterCounts) -> float:
    """Bytes that dequantization reads and writes in one micro-batch."""
    num_passes = 3 if request.recipe.training.gradient_checkpointing else 2
    return facts.num_quantized * num_passes * (PACKED_BYTES + WRITTEN_BYTES)
