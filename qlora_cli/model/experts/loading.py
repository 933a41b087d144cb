"""Quantizing experts while a base is loaded, one weight at a time: no copy of all of them in 16 bit exists.

transformers reads a checkpoint parameter by parameter, fuses the experts of a layer where the files hold them apart,
and hands each parameter that a quantizer wants to it. bitsandbytes' quantizer wants linear layers only; the one here,
registered beside it, wants the experts too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationMethod

from qlora_cli.model.experts.packed import expert_parameters, install, pack

METHOD = "bitsandbytes_4bit_with_experts"
"""Name of the quantizer below among those of transformers; no saved configuration holds it."""


def with_experts(config: BitsAndBytesConfig) -> BitsAndBytesConfig:
    """The configuration, marked so that `from_pretrained` quantizes fused experts too."""
    config.quant_method = METHOD
    return config


def experts_to_quantize(model: nn.Module, kept: list[str] | None) -> list[tuple[str, nn.Module, str]]:
    """The rows of `expert_parameters` that no name in `kept` leaves as they are.

    Args:
        kept: names of modules, matched as transformers does for linear layers.
    """
    return [row for row in expert_parameters(model) if should_convert_module(row[0], kept) and _is_free(row[0], kept)]


def _is_free(name: str, kept: list[str] | None) -> bool:
    """Whether the module of the parameter is not kept by the last part of its name.

    >>> _is_free("model.layers.0.mlp.experts.down_proj", ["experts"])
    False
    """
    return not set(name.split(".")[-2:]) & set(kept or ())


@register_quantizer(METHOD)
class ExpertsQuantizer(Bnb4BitHfQuantizer):
    """bitsandbytes' 4-bit quantizer, for fused experts too."""

    def __init__(self, quantization_config: BitsAndBytesConfig, **kwargs: Any) -> None:
        # The mark has done its work: from here on the model is one that bitsandbytes has quantized.
        quantization_config.quant_method = QuantizationMethod.BITS_AND_BYTES
        super().__init__(quantization_config, **kwargs)
        self._experts: dict[str, tuple[nn.Module, str]] = {}

    def _process_model_before_weight_loading(self, model: PreTrainedModel, device_map: Any, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, device_map, **kwargs)
        rows = experts_to_quantize(model, self.modules_to_not_convert)
        self._experts = {full: (module, name) for full, module, name in rows}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether it is a linear layer's weight or a fused one of experts."""
        return param_name in self._experts or super().param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self) -> _Quantize:
        """The operation that is called with each parameter which needs it."""
        return _Quantize(self, self._experts)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for module, name in self._experts.values():
            if hasattr(packed := module.get_parameter(name), "quant_state"):  # else the files lack it
                install(module, name, packed)
        return super()._process_model_after_weight_loading(model, **kwargs)


class _Quantize(Bnb4bitQuantize):
    """Packs a parameter that has just been read."""

    def __init__(self, quantizer: ExpertsQuantizer, experts: dict[str, tuple[nn.Module, str]]) -> None:
        super().__init__(quantizer)
        self._experts = experts

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        config = self.hf_quantizer.quantization_config
        result: dict[str, torch.Tensor] = {}
        for name in list(input_dict):
            if name not in self._experts:
                result |= super().convert({name: input_dict.pop(name)}, **kwargs)
                continue
            value = input_dict.pop(name)
            weight = value[0] if isinstance(value, list) else value
            result[name] = pack(
                weight, quant_type=config.bnb_4bit_quant_type, double_quant=config.bnb_4bit_use_double_quant
            )
        return result
