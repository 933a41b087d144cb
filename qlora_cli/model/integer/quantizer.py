"""Bases in integers for `from_pretrained`: what `quant_method: qlora_int` in a config.json means.

The layers are swapped before the weights are read, and codes, scales and offsets come into them as they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from qlora_cli.constants import INTEGERS
from qlora_cli.model.integer.linear import IntegerLinear


@register_quantization_config(INTEGERS)
class IntegerConfig(QuantizationConfigMixin):
    """`quantization_config` of a folder in integers."""

    def __init__(
        self, bits: int, group_size: int, modules_to_not_convert: list[str] | None = None, **others: Any
    ) -> None:
        """Take what config.json says.

        Args:
            bits: of a code.
            group_size: input features that share a scale and an offset; -1 for all of them.
            modules_to_not_convert: names of linear layers that are stored plain.
            others: what this version does not read.
        """
        self.quant_method: Any = INTEGERS
        self.bits, self.group_size = bits, group_size
        self.modules_to_not_convert = list(modules_to_not_convert or ())
        for name, value in others.items():
            if name != "quant_method":
                setattr(self, name, value)


@register_quantizer(INTEGERS)
class IntegerQuantizer(HfQuantizer):
    """Reads a folder in integers; nothing is quantized while it loads."""

    requires_calibration = True
    """A base that is not in integers yet is refused: `model/integer/making.py` writes them first."""

    quantization_config: IntegerConfig

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> PreTrainedModel:
        config = self.quantization_config
        swap_linear_layers(model, config.bits, config.group_size, config.modules_to_not_convert)
        if checkpoint_files:
            set_stored_dtypes(model, checkpoint_files)
        return model

    def is_serializable(self) -> bool:
        """What was loaded can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained on it."""
        return True


def swap_linear_layers(model: nn.Module, bits: int, group_size: int, kept: list[str]) -> None:
    """Put an integer layer in the place of each linear one, but for those that `kept` names.

    Args:
        model: without weights, on the meta device.
        kept: as transformers' `modules_to_not_convert`.
    """
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and should_convert_module(name, kept):
            with torch.device(module.weight.device):
                swapped = IntegerLinear(module.in_features, module.out_features, bits, group_size, module.bias)
            model.set_submodule(name, swapped)


def set_stored_dtypes(model: nn.Module, files: Sequence[str | Path]) -> None:
    """Let the layers hold scales and offsets of the types that files have."""
    set_dtypes(model, _dtype_of("scales", files), _dtype_of("offsets", files))


def set_dtypes(model: nn.Module, scales: torch.dtype, offsets: torch.dtype) -> None:
    """Give the scales and the offsets of all integer layers the types that they are stored in."""
    for module in model.modules():
        if isinstance(module, IntegerLinear):
            module.scales, module.offsets = module.scales.to(scales), module.offsets.to(offsets)


def _dtype_of(part: str, files: Sequence[str | Path]) -> torch.dtype:
    """float16 of a base as it was quantized; float32 of a merged one, whose offsets float16 does not hold, and of
    scales of others."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name.endswith(f".{part}"):
                    return torch.float32 if file.get_slice(name).get_dtype() == "F32" else torch.float16
    return torch.float16
