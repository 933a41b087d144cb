"""Experts of a mixture in 4 bit: fused weights of three dimensions that are dequantized when they are used.

transformers keeps the experts of a layer in parameters [E, O, I] or [E, I, O], which are no linear layers, so
bitsandbytes' `Linear4bit` cannot hold them. Here such a parameter becomes a parametrization (`torch.nn.utils.
parametrize`): what is stored is the packed weight, and reading the attribute dequantizes it.

Shape letters: E = experts, O = output features, I = input features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.nn.parametrize import Bnb4bitParametrization
from peft import PeftModel
from torch import nn
from torch.nn.utils import parametrize

from qlora_cli.model.experts.passes import Given, pass_of
from qlora_cli.model.experts.update import ExpertsUpdate
from qlora_cli.model.integer.linear import num_integer_weights

BLOCKSIZE = 64
"""Weights that share one absmax constant, as in bitsandbytes' linear layers."""


class PackedExperts(Bnb4bitParametrization):
    """Reads one fused weight: dequantized, in the dtype it had before, with an adapter's update where one is on."""

    def __init__(self, packed: Any) -> None:
        super().__init__(packed.quant_state)
        self.shape: torch.Size = packed.whole_shape
        self.update: ExpertsUpdate | None = None
        self.given: Given | None = None

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """The weight in its shape from the packed bytes."""
        weight = self.read(packed, self.update)
        self.given = Given(weight.untyped_storage()._cdata, self, packed, self.update)
        return weight

    def read(self, packed: torch.Tensor, update: ExpertsUpdate | None) -> torch.Tensor:
        """The weight with that update, if any."""
        weight = self.dequantized(packed)
        return weight if update is None else update.added_to(weight)

    def dequantized(self, packed: torch.Tensor) -> torch.Tensor:
        """The frozen weight alone, in its shape and dtype."""
        flat: torch.Tensor = bnb.functional.dequantize_4bit(packed, self.quant_state)
        return flat.view(self.shape)

    @property
    def num_weights(self) -> int:
        """Elements of the weight before it was packed."""
        return self.shape.numel()


def expert_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Fused weights of experts, not quantized: full name, module and name of the parameter in it.

    They are parameters of three dimensions, the first of which is the number of experts that their module names; a
    convolution's weight has three dimensions too.
    """
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_stack = parameter.dim() == 3 and parameter.shape[0] == getattr(module, "num_experts", None)
            if is_stack and parameter.is_floating_point():
                yield f"{path}.{name}" if path else name, module, name


def packed_experts(module: nn.Module) -> dict[str, PackedExperts]:
    """The quantized weights of a module of experts by their names; empty for any other module.

    >>> packed_experts(nn.Linear(2, 2))
    {}
    """
    if not parametrize.is_parametrized(module):
        return {}
    readers: Any = module.parametrizations
    return {name: chain[0] for name, chain in readers.items() if isinstance(chain[0], PackedExperts)}


def packed_parameter(module: nn.Module, name: str) -> nn.Parameter:
    """The packed bytes of a quantized weight; its `quant_state` is an attribute of them."""
    return module.get_parameter(f"parametrizations.{name}.original")


def pack(weight: torch.Tensor, *, quant_type: str, double_quant: bool) -> nn.Parameter:
    """The weight in 4 bit on its own device, as a parameter of bytes that carries its `quant_state` and `whole_shape`.

    It is quantized as one long row: on a CPU bitsandbytes 0.50.2 packs blocks over the ends of rows, and reads them as
    if each row began a new one, so rows that are no multiple of a block would be read wrong.
    """
    frozen = weight.detach()  # else its constants would have a history, which the backward pass of each step would walk
    packed, state = bnb.functional.quantize_4bit(
        frozen.flatten(), blocksize=BLOCKSIZE, compress_statistics=double_quant, quant_type=quant_type
    )
    parameter: Any = nn.Parameter(packed, requires_grad=False)
    parameter.quant_state, parameter.whole_shape = state, weight.shape
    return parameter


def install(module: nn.Module, name: str, packed: Any) -> None:
    """Have `module.name` read `packed`, which `pack` has made, from now on."""
    module.register_parameter(name, packed)
    reader = PackedExperts(packed)
    parametrize.register_parametrization(module, name, reader, unsafe=True)
    pass_of(module).readers[name] = reader


def trained_and_all(model: PeftModel) -> tuple[int, int]:
    """Numbers of parameters; PEFT would count the bytes of packed experts, each of which holds two weights, and leave
    weights in integers out."""
    num_trained, num_all = model.get_nb_trainable_parameters()
    num_uncounted = sum(
        reader.num_weights - packed_parameter(module, name).numel()
        for module in model.modules()
        for name, reader in packed_experts(module).items()
    )
    return num_trained, num_all + num_uncounted + num_integer_weights(model)
