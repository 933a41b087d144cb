"""The optimizer's parameter groups: what is decayed, and at which learning rate."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

B_MATRICES = ("lora_B", "lora_embedding_B")
"""PEFT's names of the matrices that start at zero."""


def parameter_groups(
    model: nn.Module, decayed: Collection[str], *, learning_rate: float, weight_decay: float, ratio: float
) -> list[dict[str, Any]]:
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the matrices B learn `ratio` times as fast as all else.

    The first groups have the recipe's own learning rate, which is the one that metrics.jsonl shows.

    Args:
        model: its trained parameters are grouped.
        decayed: names of the parameters that are decayed; biases and norms are not.
        learning_rate: peak rate of A, of DoRA's magnitudes and of modules that are trained in full.
        weight_decay: of those in `decayed`.
        ratio: learning rate of B over that of A.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {(b, d): [] for b in (False, True) for d in (True, False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[is_b_matrix(name), name in decayed].append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if is_decayed else 0.0,
            "lr": learning_rate * (ratio if is_b else 1),
        }
        for (is_b, is_decayed), parameters in groups.items()
        if parameters
    ]


def is_b_matrix(name: str) -> bool:
    """Whether a parameter is the B of an adapter.

    >>> is_b_matrix("layers.0.q_proj.lora_B.default.weight"), is_b_matrix("layers.0.q_proj.lora_A.default.weight")
    (True, False)
    """
    return any(part in B_MATRICES for part in name.split("."))
