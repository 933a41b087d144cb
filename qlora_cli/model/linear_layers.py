"""What counts as a linear layer, and the names of those that a model has."""

from __future__ import annotations

import torch


def linear_names(model: torch.nn.Module) -> list[str]:
    """Last parts of the names of all modules with a weight matrix, sorted; GPT-2's `Conv1D` counts too.

    >>> linear_names(torch.nn.ModuleDict({"up_proj": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)}))
    ['up_proj']
    """
    return sorted({name.split(".")[-1] for name, module in model.named_modules() if is_linear(module)})


def is_linear(module: torch.nn.Module) -> bool:
    """Whether the module is a linear layer, quantized or not.

    The routers of Llama 4 and PhiMoE derive from one, but give a choice of experts and not a product.
    """
    kind = type(module)
    return kind.__name__ == "Conv1D" or (isinstance(module, torch.nn.Linear) and not kind.__name__.endswith("Router"))
