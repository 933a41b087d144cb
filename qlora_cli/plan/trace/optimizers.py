"""The recipe's optimizer, made as `transformers` makes it for the planned device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import bitsandbytes as bnb
import torch

from qlora_cli.plan.trace.request import PlanRequest

PAGED_FROM = 100_000
"""Elements from which bitsandbytes pages a parameter's state; smaller ones stay in plain GPU memory."""

UNPAGED = {"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_torch"}
"""Optimizers where there is no GPU memory to page out of: the same update rule, the state in plain memory."""

Parameters = Iterable[torch.nn.Parameter]


def make_optimizer(request: PlanRequest, parameters: Parameters) -> torch.optim.Optimizer:
    """An optimizer over `parameters` with the state it will hold on the request's device, none of it paged yet."""
    name = request.recipe.training.optim
    on_cuda = request.device.kind == "cuda"
    # torch's default on CUDA differs from the fused kernel by one copy of a moment, which `workspaces` counts.
    makers: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
        "adamw_torch": lambda trained: torch.optim.AdamW(trained, fused=on_cuda or None),
        "adamw_torch_fused": lambda trained: torch.optim.AdamW(trained, fused=True),
        "adamw_8bit": lambda trained: bnb.optim.AdamW(trained, optim_bits=8),
        "paged_adamw_8bit": lambda trained: bnb.optim.AdamW(trained, optim_bits=8),
        "paged_adamw_32bit": lambda trained: bnb.optim.AdamW(trained, optim_bits=32),
    }
    return makers[name if on_cuda else UNPAGED.get(name, name)](parameters)


def is_paged(request: PlanRequest, parameter: torch.Tensor) -> bool:
    """Whether the moments of this parameter are in memory that moves between the GPU and the host."""
    is_on = request.device.kind == "cuda" and request.recipe.training.optim.startswith("paged")
    return is_on and parameter.numel() >= PAGED_FROM
