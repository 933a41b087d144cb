"""Which linear layers of a base become integers, and what their weights are called in its files.

Output head, gates that choose experts, what text does not go through, and what the recipe names stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from qlora_cli.errors import RecipeError
from qlora_cli.model.experts.packed import expert_parameters
from qlora_cli.model.linear_layers import linear_names
from qlora_cli.model.towers.auto_class import auto_class, own_auto_class
from qlora_cli.model.towers.own_names import note_own_class, own_class
from qlora_cli.model.towers.skeleton import bare_skeleton, kept_modules
from qlora_cli.model.towers.stored_names import stored_names
from qlora_cli.model.towers.text_reach import text_reach
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from qlora_cli.recipe.stored_weights import stored_section

SMALLER_GROUPS = (64, 32)
"""Group sizes below the largest."""


@dataclass(frozen=True)
class LayerChoice:
    """Linear layers of the whole model that a base's files are made of."""

    skeleton: PreTrainedModel
    """That model without weights, and as if they were plain."""

    rounded: tuple[str, ...]
    kept: tuple[str, ...]
    """Names of those that stay, as the files' class calls them and as the class does that is loaded for text."""


def layers_to_round(model: ModelSection, quantization: QuantizationSection, config: PreTrainedConfig) -> LayerChoice:
    """The layers of a base that the recipe rounds.

    Args:
        config: of the whole base.

    Raises:
        RecipeError: if the inputs of one cannot be divided into groups, there is none, or one to skip is not there.
    """
    config, skeleton = _plain(model, config)
    _refuse_unknown(model, quantization, skeleton)
    reach = text_reach(own_auto_class(config), config)
    kept = {*kept_modules(skeleton), *quantization.skip_modules}
    linear = {name: module for name, module in skeleton.named_modules() if isinstance(module, torch.nn.Linear)}
    rounded = [
        name
        for name, module in linear.items()
        if type(module) is torch.nn.Linear
        and (reach is None or name in reach.reached)
        and not _chooses_experts(skeleton, name)
        and not any(f".{one}." in f".{name}." for one in kept)
    ]
    _refuse_indivisible({name: linear[name].in_features for name in rounded}, quantization)
    if not rounded:
        raise RecipeError(
            f"quantization.method: int is for linear layers, and {type(skeleton).__name__} has none to round",
            hint="--set quantization.method=bitsandbytes",
        )
    return LayerChoice(skeleton, tuple(rounded), _both_names(model, config, set(linear) - set(rounded)))


def layers_taken_over(model: ModelSection, config: PreTrainedConfig, keys: Iterable[str] | None) -> LayerChoice:
    """The layers that a base of others holds in integers.

    Args:
        config: of the whole base.
        keys: names that their weights would have in its files if they were plain; None where the files are not here,
            and config.json must do.

    Raises:
        ValueError: with the key that is the weight of no linear layer.
    """
    section = stored_section(config.to_dict())
    config, skeleton = _plain(model, config)
    linear = [name for name, module in skeleton.named_modules() if type(module) is torch.nn.Linear]
    if keys is None:
        plain = [*kept_modules(skeleton), *(str(name).removeprefix("re:") for name in section.get("ignore") or ())]
        plain += [str(name).removeprefix("-").removeprefix(":") for name in section.get("dynamic") or ()]
        taken = {name for name in linear if should_convert_module(name, plain)}
    else:
        names = {key: name.removesuffix(".weight") for name, key in stored_names(skeleton, keys).items()}
        unknown = [key for key in keys if names.get(key) not in linear]
        if unknown:
            raise ValueError(unknown[0])
        taken = set(names.values())
    return LayerChoice(skeleton, tuple(sorted(taken)), _both_names(model, config, set(linear) - taken))


def _plain(model: ModelSection, config: PreTrainedConfig) -> tuple[PreTrainedConfig, PreTrainedModel]:
    """Configuration and skeleton of the whole model, as if its weights were plain."""
    config = copy.deepcopy(config)
    config.__dict__.pop("quantization_config", None)
    return config, bare_skeleton(own_auto_class(config), config, trust_code=model.trust_remote_code)


def _both_names(model: ModelSection, config: PreTrainedConfig, left: set[str]) -> tuple[str, ...]:
    """Names of layers, as the files' class calls them and as the class does that is loaded for text."""
    loaded = bare_skeleton(auto_class(config), config, trust_code=model.trust_remote_code)
    note_own_class(loaded, config)
    own = own_class(loaded)
    return tuple(sorted(left | {own.loaded_name(name) for name in left} if own else left))


def _chooses_experts(skeleton: PreTrainedModel, name: str) -> bool:
    """Whether a layer is a router, a part of one, or the gate of a shared expert."""
    parent = skeleton.get_submodule(name.rpartition(".")[0])
    return type(parent).__name__.endswith("Router") or name.endswith("gate")


def weight_keys(choice: LayerChoice, names: Iterable[str], base_model: str) -> dict[str, str]:
    """Names in a base's files of the weights of the layers that are rounded, and those of the layers.

    Args:
        names: of all tensors of the files, as if none were packed.
        base_model: of the recipe.

    Raises:
        RecipeError: if a layer has no tensor of its own there.
    """
    stored = stored_names(choice.skeleton, names)
    keys = {}
    for name in choice.rounded:
        key = stored.get(f"{name}.weight")
        if key is None or not key.endswith(".weight"):
            raise RecipeError(
                f"quantization.method: int needs a tensor of each linear layer, and the files of '{base_model}' have "
                f"none of '{name}'",
                hint=f"--set quantization.skip_modules=[{name.rpartition('.')[2]}] to keep it in 16 bit",
            )
        keys[key] = name
    return keys


def _refuse_unknown(model: ModelSection, quantization: QuantizationSection, skeleton: PreTrainedModel) -> None:
    named = [name for name, _ in skeleton.named_modules()] + [name for name, _, _ in expert_parameters(skeleton)]
    last_parts = {name.rpartition(".")[2] for name in named}
    for skipped in quantization.skip_modules:
        if skipped not in last_parts:
            raise RecipeError(
                f"quantization.skip_modules: '{model.base_model}' has no module named '{skipped}'",
                hint=f"its linear modules are {', '.join(linear_names(skeleton))}",
            )


def _refuse_indivisible(num_inputs: dict[str, int], quantization: QuantizationSection) -> None:
    size = quantization.weights_in_group
    for name, inputs in num_inputs.items():
        if size > 0 and inputs % size:
            smaller = [each for each in SMALLER_GROUPS if each < size and inputs % each == 0]
            instead = f"--set quantization.group_size={smaller[0]}, or " if smaller else ""
            raise RecipeError(
                f"quantization.group_size: the {inputs} inputs of '{name}' cannot be divided into groups of {size}",
                hint=f"{instead}--set quantization.skip_modules=[{name.rpartition('.')[2]}] to keep it in 16 bit",
            )
