"""Loading a base that is stored in FP8 or the like as plain weights, and packing those by bitsandbytes on the way.

`from_pretrained` can dequantize or quantize, not both. The quantizer below, registered beside those of transformers,
does one after the other with each parameter: the operation that dequantizes it, a cast to the model's dtype, and the
operation that packs it. Parameters are read one at a time, so beside the packed model there is one plain weight.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from qlora_cli.errors import RecipeError
from qlora_cli.model.packed_weights import as_scale
from qlora_cli.model.prequantized import is_kept_in_float32

METHOD = "qlora_dequantize_then_quantize"
"""Name of the quantizer below among those of transformers; no saved configuration holds it."""

ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
"""transformers' variable for reading each parameter when it is its turn, not as many as threads can."""


class DequantizingConfig(QuantizationConfigMixin):
    """How a base is stored, and how its plain weights are to be kept."""

    def __init__(self, stored: QuantizationConfigMixin, packing: BitsAndBytesConfig | None, dtype: torch.dtype) -> None:
        super().__init__(quant_method=METHOD)
        self.stored = stored
        self.packing = packing
        self.dtype = dtype


def dequantizing_config(
    config: PreTrainedConfig, packing: BitsAndBytesConfig | None, dtype: torch.dtype
) -> DequantizingConfig:
    """What `from_pretrained` is given to dequantize a base; the base's own section is taken out of `config`.

    Args:
        config: of a base that transformers can dequantize.
        packing: how plain weights are packed; None keeps them plain.
        dtype: of the plain weights.

    Raises:
        RecipeError: if a package is missing that the form of the base needs.
    """
    sections = []
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            sections.append(part.quantization_config)
            del part.quantization_config
    [section, *_] = sections
    is_missing = section.get("quant_method", "compressed-tensors") == "compressed-tensors" and not _has_package()
    if is_missing:
        raise RecipeError(
            "model.dequantize: the base is stored in compressed-tensors, and the package that unpacks it is missing",
            hint="pip install compressed-tensors",
        )
    stored = AutoQuantizationConfig.from_dict({"quant_method": "compressed-tensors", **section})
    stored.dequantize = True
    return DequantizingConfig(stored, packing, dtype)


def _has_package() -> bool:
    return find_spec("compressed_tensors") is not None


@contextmanager
def one_by_one(packing: object) -> Iterator[None]:
    """Let a base that is dequantized be read parameter by parameter, so that they do not pile up unpacked.

    Args:
        packing: what `from_pretrained` is given; without effect on any but a `DequantizingConfig`.
    """
    if not isinstance(packing, DequantizingConfig):
        yield
        return
    before = os.environ.get(ONE_BY_ONE)
    os.environ[ONE_BY_ONE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ONE_BY_ONE]
        else:
            os.environ[ONE_BY_ONE] = before


@register_quantizer(METHOD)
class DequantizingQuantizer(HfQuantizer):
    """Dequantizes each parameter as transformers' quantizer for the stored form does, then packs it by bitsandbytes."""

    def __init__(self, quantization_config: DequantizingConfig, **kwargs: Any) -> None:
        # The checkpoint is quantized, and what becomes of a parameter is the matter of the operations below.
        super().__init__(quantization_config, pre_quantized=True)
        self.stored = AutoHfQuantizer.from_config(quantization_config.stored, pre_quantized=True)
        packing = quantization_config.packing
        self.packing = None if packing is None else AutoHfQuantizer.from_config(packing, pre_quantized=False)

    def validate_environment(self, **kwargs: Any) -> None:
        """Raise what the two quantizers raise."""
        for quantizer in self._both:
            quantizer.validate_environment(**kwargs)

    @property
    def _both(self) -> list[HfQuantizer]:
        return [self.stored] if self.packing is None else [self.stored, self.packing]

    def is_serializable(self) -> bool:
        """Whether the model can be saved: as any that bitsandbytes has packed."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters on it can be trained."""
        return True

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether the parameter is packed, so that its shape is another than the plain one's."""
        return self.packing is not None and self.packing.param_needs_quantization(model, param_name, **kwargs)

    def _convert_model_for_quantization(self, model: PreTrainedModel) -> None:
        """The modules that other quantizers need in place of the model's own are for serving packed experts."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        for quantizer in self._both:
            quantizer._process_model_before_weight_loading(model, **kwargs)

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """The conversions of a model that dequantize its parameters, each followed by the cast and the packing."""
        conversions = self.stored.update_weight_conversions(weight_conversions, model)
        finish = _CastAndPack(self)
        if not any("weight" in each.source_patterns for each in conversions if isinstance(each, WeightConverter)):
            conversions.append(WeightConverter("weight", "weight", [_AsItIs()]))
        for conversion in conversions:
            if isinstance(conversion, WeightConverter):
                conversion.operations = [_with_cut_blocks(operation) for operation in conversion.operations]
                conversion.quantization_operation = finish
        return conversions

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """From here on it is a plain model, or one that bitsandbytes has packed; saved, it is not quantized again."""
        model._weight_conversions = None
        if self.packing is None:
            self.remove_quantization_config(model)
            return model
        model.config.quantization_config = self.packing.quantization_config
        model.quantization_method = self.packing.quantization_config.quant_method
        model.hf_quantizer = self.packing
        return self.packing._process_model_after_weight_loading(model, **kwargs)


def _with_cut_blocks(operation: ConversionOps) -> ConversionOps:
    return _CutBlocks(operation.hf_quantizer) if type(operation) is Fp8Dequantize else operation


class _CutBlocks(Fp8Dequantize):
    """FP8 whose last blocks are cut short, since the weight is no multiple of a block.

    transformers 5.23 divides the weight evenly among its scales: it refuses 320 rows with blocks of 128, and reads 192
    rows as two blocks of 96.
    """

    def _dequantize_one(
        self, quantized: torch.Tensor, scales: torch.Tensor, output_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        block = self.hf_quantizer.quantization_config.weight_block_size
        shape = quantized.shape[-2:]
        is_blocked = block is not None and quantized.is_floating_point() and scales.dim() >= 2
        if not is_blocked or all(size % side == 0 for size, side in zip(shape, block, strict=True)):
            return super()._dequantize_one(quantized, scales, output_dtype)
        rows, columns = (torch.arange(size) // side for size, side in zip(shape, block, strict=True))
        scale = as_scale(scales)[..., rows.to(scales.device), :][..., columns.to(scales.device)]
        return (quantized.float() * scale).to(output_dtype or torch.bfloat16)


class _AsItIs(ConversionOps):
    """Hands a parameter on that is stored plain."""

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return input_dict


class _CastAndPack(ConversionOps):
    """The last operation on each parameter, after which it goes into the model."""

    def __init__(self, quantizer: DequantizingQuantizer) -> None:
        self._quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> _CastAndPack:
        """transformers copies the operations for each parameter; this one refers to the one quantizer."""
        return self

    def convert(self, input_dict: dict[str, Any], *, model: PreTrainedModel, **kwargs: Any) -> dict[str, torch.Tensor]:
        result: dict[str, torch.Tensor] = {}
        dtype = self._quantizer.quantization_config.dtype
        for name in list(input_dict):
            value = input_dict.pop(name)
            weight = value[0] if isinstance(value, list) else value
            weight = weight.to(torch.float32 if is_kept_in_float32(model, name, dtype) else dtype)
            if (packing := self._quantizer.packing) is not None and packing.param_needs_quantization(model, name):
                operation = packing.get_quantize_ops()
                result |= operation.convert({name: weight}, **{**kwargs, "model": model, "full_layer_name": name})
            else:
                result[name] = weight
        return result
