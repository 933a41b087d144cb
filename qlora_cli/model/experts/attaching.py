"""PEFT's adapters on quantized experts.

PEFT looks for the parameters that it is to wrap by name and shape, and passes over a parametrized one without a word.
While it attaches, each quantized weight is therefore stood in for by a parameter of its shape that takes no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.nn.utils import parametrize

from qlora_cli.model.experts.packed import PackedExperts, install, packed_experts, packed_parameter
from qlora_cli.model.experts.update import update_is_on


@contextmanager
def experts_shown_whole(base: nn.Module) -> Iterator[None]:
    """While the block runs, quantized experts of `base` are plain parameters of their shape and dtype, without values.

    Wrappers that PEFT has put on them by its end add their update to the quantized weights.
    """
    shown = [(module, name, packed_parameter(module, name)) for module, name, _ in _rows(base)]
    for module, name, seen_by in _rows(base):
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        setattr(module, name, _stand_in(seen_by, module.get_parameter(name).device))
    try:
        yield
    finally:
        for module, name, packed in shown:
            install(module, name, packed)
    let_wrappers_update(base)


def let_wrappers_update(base: nn.Module) -> None:
    """Have PEFT's wrappers of quantized experts give their update to the weight's reader."""
    for wrapper in base.modules():
        if isinstance(wrapper, ParamWrapper):
            reader = packed_experts(wrapper.get_base_layer()).get(wrapper.parameter_name)
            if reader is not None:
                wrapper._activate_lora = partial(update_is_on, wrapper, reader)


def _rows(base: nn.Module) -> list[tuple[nn.Module, str, PackedExperts]]:
    return [(module, name, reader) for module in base.modules() for name, reader in packed_experts(module).items()]


def _stand_in(reader: PackedExperts, device: torch.device) -> nn.Parameter:
    value = torch.empty((), dtype=reader.quant_state.dtype, device=device)
    return nn.Parameter(value.expand(reader.shape), requires_grad=False)
