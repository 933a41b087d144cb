"""The frozen base model: 4-bit, 8-bit or 16-bit weights, loaded as `transformers` loads them."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from qlora_cli import compat
from qlora_cli.errors import RecipeError
from qlora_cli.model.device import pick_device, pick_dtype
from qlora_cli.recipe.schema import ModelSection, QuantizationSection


def load_base(
    model: ModelSection,
    quantization: QuantizationSection | None,
    *,
    source: str | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """The base model with every parameter frozen, on one device.

    Args:
        model: which model, in which precision.
        quantization: how its linear weights are stored; None keeps them in `model.dtype`.
        source: folder that stands in for `model.base_model`, such as the residual that PiSSA leaves.
        device: where to; the GPU where there is one when None.

    Raises:
        RecipeError: if the model cannot be found, read or quantized.
    """
    device = device or pick_device()
    dtype = pick_dtype(model.dtype, device)
    try:
        base = AutoModelForCausalLM.from_pretrained(
            source or model.base_model,
            revision=None if source else model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=dtype,
            attn_implementation=model.attn_implementation,
            quantization_config=quantization and _bitsandbytes_config(model, quantization, dtype),
            device_map={"": device},
            use_safetensors=True,
        )
    except (OSError, ValueError, ImportError) as fault:
        raise source_error(source or model.base_model, fault) from fault
    compat.keep_four_bit_weights_unpacked(base)
    base.requires_grad_(False)
    return base


def _bitsandbytes_config(
    model: ModelSection, quantization: QuantizationSection, compute_dtype: torch.dtype
) -> BitsAndBytesConfig:
    skip_modules = _modules_to_skip(model, quantization)
    if quantization.quant_type == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip_modules)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant is not False,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skip_modules,
    )


def _modules_to_skip(model: ModelSection, quantization: QuantizationSection) -> list[str] | None:
    """The recipe's modules and those that `transformers` leaves alone by itself, the output head first of all.

    A list that is given replaces the library's own, so both must be in it; None leaves the choice to the library.
    """
    if not quantization.skip_modules:
        return None
    config = AutoConfig.from_pretrained(
        model.base_model, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    names = [name for name, _ in skeleton.named_modules()]
    for skipped in quantization.skip_modules:
        if not any(name.split(".")[-1] == skipped for name in names):
            raise RecipeError(
                f"quantization.skip_modules: '{model.base_model}' has no module named '{skipped}'",
                hint=f"its linear modules are {', '.join(linear_names(skeleton))}",
            )
    return [*get_keys_to_not_convert(skeleton), *quantization.skip_modules]


def linear_names(model: torch.nn.Module) -> list[str]:
    """Last parts of the names of all modules with a weight matrix, sorted; GPT-2's `Conv1D` counts too.

    >>> linear_names(torch.nn.ModuleDict({"up_proj": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)}))
    ['up_proj']
    """
    return sorted({name.split(".")[-1] for name, module in model.named_modules() if is_linear(module)})


def is_linear(module: torch.nn.Module) -> bool:
    """Whether the module is a linear layer, quantized or not."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def source_error(name: str, fault: Exception) -> RecipeError:
    """The library's reason why `name` cannot be loaded, in one line, with what to do."""
    reason = " ".join(str(fault).split())
    lowered = reason.lower()
    if "gated" in lowered or "401" in lowered or "403" in lowered:
        hint = "accept its licence on the Hub, then `hf auth login`, or set HF_TOKEN"
    elif "offline" in lowered or "couldn't connect" in lowered or "can't load" in lowered or "cannot find" in lowered:
        hint = "check the name for typing errors; offline, it must be a local folder or already in the Hub cache"
    elif "attention implementation" in lowered or "flash" in lowered:
        hint = "--set model.attn_implementation=eager, or install the kernel that it names"
    elif "safetensors" in lowered:
        hint = "only safetensors weights are read; convert the model, or choose a revision that has them"
    else:
        hint = "give a Hub id such as Qwen/Qwen3-8B, or a folder with config.json and safetensors weights"
    return RecipeError(f"model.base_model '{name}' cannot be loaded: {reason[:300]}", hint=hint)
