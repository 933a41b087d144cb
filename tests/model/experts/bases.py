"""Tiny mixtures of experts on disk, and the same bases with their experts dequantized in advance."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from qlora_cli.model.base import load_base
from qlora_cli.model.experts.packed import packed_experts, packed_parameter
from qlora_cli.plan.trace.live_memory import LiveMemory
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from tests.plan.bases import NEEDS_EAGER, config_of, save_base

MIXTURES = ("mixtral", "qwen3_moe", "granitemoe", "deepseek_v3", "llama4", "phimoe", "gpt_oss", "gemma4_moe")
"""Fused experts [E, O, I]; Llama 4's and gpt-oss's are [E, I, O], and gpt-oss's have biases."""

CPU = torch.device("cpu")


def section_of(name: str, folder: Path, **keys: str) -> ModelSection:
    """The recipe's section for a base of that architecture in `folder`, in float32."""
    attention = "eager" if name in NEEDS_EAGER else "sdpa"
    return ModelSection(base_model=str(folder), attn_implementation=attention, **keys)


def made(name: str, folder: Path) -> ModelSection:
    """A tiny base of that architecture, written to `folder`."""
    save_base(folder, config_of(name))
    return section_of(name, folder)


def dequantized_experts(module, name: str) -> torch.Tensor:
    """The frozen weight, with the values that the forward pass multiplies by, in their dtype."""
    return packed_experts(module)[name].dequantized(packed_parameter(module, name))


def with_dequantized_experts(section: ModelSection, packed: PreTrainedModel) -> PreTrainedModel:
    """The base with experts that hold, as plain parameters, the values that `packed` reads."""
    plain = load_base(section, QuantizationSection(experts=False), device=CPU)
    with torch.no_grad():
        for path, module in packed.named_modules():
            for name in packed_experts(module):
                plain.get_submodule(path).get_parameter(name).copy_(dequantized_experts(module, name))
    return plain


class OffMeta(LiveMemory):
    """Counts the storages that live, but those of a skeleton, which have no memory behind them."""

    def add(self, tensor, kind=None):
        if tensor.device.type != "meta":
            super().add(tensor, kind)

    @property
    def living_bytes(self) -> int:
        """All that is there now."""
        return sum(block.num_bytes for block in self.blocks if block.freed_at is None)

    @property
    def peak_bytes(self) -> int:
        """The most that was there at a time."""
        births = [(block.allocated_at, block.num_bytes) for block in self.blocks]
        deaths = [(block.freed_at, -block.num_bytes) for block in self.blocks if block.freed_at is not None]
        height = most = 0
        for _, change in sorted(births + deaths):
            height += change
            most = max(most, height)
        return most
