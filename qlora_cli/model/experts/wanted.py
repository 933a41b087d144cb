"""Whether a recipe quantizes experts, and what it may not ask of a base that has none."""

from __future__ import annotations

from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig

from qlora_cli.errors import RecipeError
from qlora_cli.model.device import dtype_name
from qlora_cli.model.experts.loading import with_experts
from qlora_cli.model.experts.packed import expert_parameters, packed_experts
from qlora_cli.recipe.schema import QuantizationSection, TrainingSection
from qlora_cli.recipe.stored_weights import stored_weights


def quantizes_experts(quantization: QuantizationSection | None, config: PreTrainedConfig | None = None) -> bool:
    """Whether the recipe quantizes fused experts where the base has some; int8 and `method: int` leave them alone.

    Args:
        config: the base's, where it is known; one that bitsandbytes has stored is loaded as it is stored.

    >>> quantizes_experts(QuantizationSection()), quantizes_experts(QuantizationSection(quant_type="int8"))
    (True, False)
    """
    stored = None if config is None else stored_weights(config.to_dict())
    can_be = quantization is not None and quantization.method == "bitsandbytes" and not quantization.is_int8
    is_wanted = can_be and quantization is not None and quantization.experts is not False
    return is_wanted and not (stored is not None and stored.is_bitsandbytes)


def for_experts(quantization: QuantizationSection, config: BitsAndBytesConfig) -> BitsAndBytesConfig:
    """The configuration with which `from_pretrained` quantizes experts too, if the recipe does."""
    return with_experts(config) if quantizes_experts(quantization) else config


def refuse_experts_that_are_none(quantization: QuantizationSection | None, name: str, base: nn.Module) -> None:
    """Refuse a recipe that asks for experts in 4 bit of a loaded base in which there are none.

    Raises:
        RecipeError: which says so.
    """
    if quantization is None or not quantization.experts or any(packed_experts(module) for module in base.modules()):
        return
    raise no_experts(name)


def keeps_experts_packed(training: TrainingSection) -> bool:
    """Whether a training step dequantizes experts again in its backward pass, instead of keeping them from forward."""
    return not training.gradient_checkpointing and not training.activation_offloading


def experts_in_words(base: nn.Module, quantization: QuantizationSection | None) -> str:
    """How a loaded base stores its fused experts, in one line; empty where it has none or nothing is quantized."""
    packed = [reader.num_weights for module in base.modules() for reader in packed_experts(module).values()]
    whole = [module.get_parameter(name) for _, module, name in expert_parameters(base)]
    if quantization is None or (not packed and not whole):
        return ""
    kind = quantization.kind.upper()
    parts = [f"{sum(packed):,} parameters in {len(packed)} fused weights, in {kind}"] if packed else []
    if whole:
        num_weights, dtype = sum(weight.numel() for weight in whole), dtype_name(whole[0].dtype)
        parts.append(f"{num_weights:,} parameters in {len(whole)} fused weights stay in {dtype}{_why(quantization)}")
    return f"experts: {'; '.join(parts)}"


def _why(quantization: QuantizationSection) -> str:
    if quantization.is_int8 or quantization.is_in_integers:
        return f", since {quantization.kind} is for linear layers only"
    return ", as quantization.experts says" if quantization.experts is False else ""


def no_experts(name: str) -> RecipeError:
    """The error for a base without experts that could be quantized."""
    return RecipeError(
        f"quantization.experts is true, but '{name}' has no fused experts that can be quantized",
        hint="take the key out, or --set quantization.experts=false",
    )
