"""Bases whose weights are stored quantized: what that makes of a recipe, and whether a loaded one is as it says."""

from __future__ import annotations

import re
from pathlib import Path

import bitsandbytes as bnb
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from qlora_cli.errors import IdentityError, RecipeError
from qlora_cli.model.packed_weights import packed_weights
from qlora_cli.recipe.base_files import cached_base
from qlora_cli.recipe.schema import ModelSection, QuantizationSection, Recipe
from qlora_cli.recipe.stored_rules import as_stored, check_stored, original_hint, recipe_as_stored
from qlora_cli.recipe.stored_weights import StoredWeights, stored_weights
from qlora_cli.run.files import read_json_object

PACKED_EXPERT = re.compile(r"\.experts\.\d+\.")
"""In the name of a weight of one expert."""


def stored_in(folder: Path) -> StoredWeights | None:
    """The form of the weights of a model folder; None where they are plain.

    Raises:
        IdentityError: if its config.json is missing or damaged.
    """
    return stored_weights(read_json_object(folder / "config.json", hint="download the base model again"))


def recipe_on(recipe: Recipe, config: PreTrainedConfig) -> Recipe:
    """The recipe with `quantization` as its base decides it.

    Args:
        config: the base's.

    Raises:
        RecipeError: if the recipe asks for another storage than the base has, or the base's cannot be trained on.
    """
    _refuse_experts_apart(recipe.model, config)
    settings = config.to_dict()
    for conflict in check_stored(settings, recipe.model_dump(mode="json", exclude_none=True)):
        raise RecipeError(conflict.text, hint=conflict.hint)
    return recipe_as_stored(recipe, settings)


def quantization_on(
    model: ModelSection, quantization: QuantizationSection | None, config: PreTrainedConfig
) -> QuantizationSection | None:
    """How the linear weights of the base will be stored, as `recipe_on`; for a model without a recipe.

    Raises:
        RecipeError: as `recipe_on`.
    """
    _refuse_experts_apart(model, config)
    settings = config.to_dict()
    asked = None if quantization is None else quantization.model_dump(mode="json", exclude_none=True)
    for conflict in check_stored(settings, {"model": model.model_dump(mode="json"), "quantization": asked}):
        raise RecipeError(conflict.text, hint=conflict.hint)
    return as_stored(quantization, settings, dequantize=model.dequantize)


def _refuse_experts_apart(model: ModelSection, config: PreTrainedConfig) -> None:
    """Refuse a base on this machine whose experts bitsandbytes has packed one by one, where the model fuses them.

    transformers 5 would put the packed bytes of a layer's experts together as if they were weights.

    Raises:
        RecipeError: naming one of them.
    """
    stored = stored_weights(config.to_dict())
    here = Path(model.base_model)
    folder = here if here.is_dir() else cached_base(model.base_model, model.revision)
    if stored is None or not stored.is_bitsandbytes or folder is None:
        return
    try:
        apart = next((name for name in packed_weights(folder) if PACKED_EXPERT.search(name)), None)
    except IdentityError:  # a plan needs no weights, and loading says what is wrong with them
        return
    if apart is None:
        return
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    if any(parameter.dim() == 3 and "experts" in name for name, parameter in skeleton.named_parameters()):
        raise RecipeError(
            f"model.base_model '{model.base_model}' stores each expert by itself in {stored.quant_type} ('{apart}'), "
            f"and {type(skeleton).__name__} keeps the experts of a layer in one weight: it cannot be loaded",
            hint=original_hint(model.base_model, config.to_dict()),
        )


def is_kept_in_float32(base: PreTrainedModel, name: str, dtype: torch.dtype) -> bool:
    """Whether `from_pretrained` loads a parameter or buffer in float32 where the model is in `dtype`."""
    names: set[str] = set()
    if dtype in (torch.float16, torch.bfloat16):
        names |= set(base._keep_in_fp32_modules_strict or ())
    if dtype is torch.float16:
        names |= set(base._keep_in_fp32_modules or ())
    return any(f".{kept}." in f".{name}." for kept in names)


def fit_stored(base: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Bring a loaded base that bitsandbytes had stored into the model's dtype, as one that is packed while it loads.

    `transformers` leaves its plain parts in the dtype in which they are stored, whatever dtype it is asked for, and
    lets 4-bit layers compute in the dtype that config.json names.

    Args:
        dtype: the model's; None leaves a base alone that was not stored so.
    """
    if dtype is None:
        return
    for module in base.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.compute_dtype, module.compute_type_is_set = dtype, True
    packed = {id(module.weight) for module in base.modules() if _storage(module) is not None}
    for name, parameter in base.named_parameters():
        if id(parameter) not in packed and parameter.is_floating_point():
            wanted = torch.float32 if is_kept_in_float32(base, name, dtype) else dtype
            parameter.data = parameter.data.to(wanted)


def refuse_other_storage(base: PreTrainedModel, name: str, quantization: QuantizationSection | None) -> None:
    """Refuse a base whose loaded weights are stored in another way than its config.json says.

    Args:
        name: of the base.
        quantization: what was expected of it.

    Raises:
        RecipeError: naming the first layer that differs.
    """
    if quantization is None:
        return
    wanted = (quantization.quant_type, quantization.quant_type == "int8" or quantization.double_quant is not False)
    for layer, module in base.named_modules():
        found = _storage(module)
        if found is not None and found != wanted:
            raise RecipeError(
                f"model.base_model '{name}': the weights of {layer} are {_told(found)}, and not {_told(wanted)}",
                hint="its config.json does not belong to its weights: download it again",
            )


def _storage(module: torch.nn.Module) -> tuple[str, bool] | None:
    """Type and double quantization of a layer of bitsandbytes; None of any other module."""
    if isinstance(module, bnb.nn.Linear8bitLt):
        return ("int8" if module.weight.dtype == torch.int8 else "not quantized", True)
    if not isinstance(module, bnb.nn.Linear4bit):
        return None
    state = getattr(module.weight, "quant_state", None)
    return ("not quantized", True) if state is None else (state.quant_type, state.nested)


def _told(storage: tuple[str, bool]) -> str:
    kind, is_double = storage
    return kind if is_double else f"{kind} without double quantization"
