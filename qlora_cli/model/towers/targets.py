"""The modules of a base that get an adapter: linear layers that text goes through, by their names."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from qlora_cli.errors import RecipeError
from qlora_cli.model.experts.packed import expert_parameters
from qlora_cli.model.linear_layers import is_linear, linear_names
from qlora_cli.model.towers.auto_class import auto_class, own_auto_class
from qlora_cli.model.towers.own_names import own_class
from qlora_cli.model.towers.text_reach import TextReach, text_reach, untouched_pattern
from qlora_cli.recipe.schema import LoraSection

Targets = str | Collection[str]
"""`all-linear`, or names or last parts of names."""


def check_targets(base: PreTrainedModel, lora: LoraSection) -> None:
    """Refuse names that are none of the base's, or only of parts that no text goes through.

    Raises:
        RecipeError: with the name, and those that there are.
    """
    names = {name for name, _ in base.named_modules()}
    targets = () if isinstance(lora.target_modules, str) else lora.target_modules
    linear = {name for name, module in base.named_modules() if is_linear(module)}
    reach = reach_of(base) or TextReach(frozenset(linear))
    reached_names = ", ".join(sorted({name.split(".")[-1] for name in reach.reached}))
    fused = fused_targets(base, lora)
    for target in targets:
        if target in fused:
            continue
        if not matches(target, linear):
            raise RecipeError(
                f"lora.target_modules: '{target}' matches no linear module of the base model",
                hint=f"its linear modules are {', '.join(linear_names(base))}{_and_experts(base)}",
            )
        if not matches(target, reach.reached):
            raise RecipeError(
                f"lora.target_modules: '{target}' is only in a part of the base model that text does not go through: "
                f"{_example(target, linear)}",
                hint=f"the linear modules that it goes through are {reached_names}",
            )
    untouched = re.compile(untouched_pattern(reach.unreached, reach.reached) or r"(?!)")
    for saved in lora.modules_to_save:
        found = [name for name in names if matches(saved, {name})]
        if not found:
            raise RecipeError(
                f"lora.modules_to_save: '{saved}' matches no module of the base model",
                hint="`embed_tokens` and `lm_head` are the usual ones",
            )
        if all(untouched.fullmatch(name) for name in found):
            raise RecipeError(
                f"lora.modules_to_save: '{saved}' is only in a part of the base model that text does not go through: "
                f"{sorted(found)[0]}",
                hint="`embed_tokens` and `lm_head` are the usual ones",
            )


def fused_targets(base: PreTrainedModel, lora: LoraSection) -> list[str]:
    """Names of the list that are fused weights of experts and no modules: PEFT has a list of its own for them."""
    targets = () if isinstance(lora.target_modules, str) else lora.target_modules
    experts = {name for name, _, _ in expert_parameters(base)}
    modules = {name for name, _ in base.named_modules()}
    return [target for target in targets if matches(target, experts) and not matches(target, modules)]


def _and_experts(base: PreTrainedModel) -> str:
    """
    >>> _and_experts(torch.nn.Linear(2, 2))
    ''
    """
    names = sorted({name.rpartition(".")[2] for name, _, _ in expert_parameters(base)})
    return f"; its fused experts are {', '.join(names)}" if names else ""


def modules_to_exclude(base: PreTrainedModel, targets: Targets) -> str | list[str] | None:
    """What PEFT would take for a target and is none: routers, and layers that text does not go through.

    Returns:
        Last parts of names, or a pattern of whole names where a part of the base is left out.
    """
    routers = _routers(base) if targets == "all-linear" else []
    pattern = _untouched(targets, reach_of(base))
    if pattern is None:
        return routers or None
    return "|".join([pattern, *(rf"(.*\.)?{re.escape(router)}" for router in routers)])


def reach_of(base: PreTrainedModel) -> TextReach | None:
    """The layers that text goes through by their names on `base`; None for a language model and no more.

    They are looked for in the whole base: a language model that is loaded alone may have layers that only images reach,
    such as the cross-attention of Llama 3.2 Vision.
    """
    own = own_class(base)
    if own is None:
        return text_reach(auto_class(base.config), base.config)
    whole = text_reach(own_auto_class(own.config), own.config)
    if whole is None:
        return None
    names = frozenset(name for name, _ in base.named_modules())
    reached, unreached = (frozenset(map(own.loaded_name, each)) & names for each in (whole.reached, whole.unreached))
    return TextReach(reached, unreached, names)


def settle_config(model: PeftModel, base: PreTrainedModel) -> None:
    """Let the adapter's configuration say which layers it is on in words that hold for the base's own class too.

    Where a base has several parts, PEFT would write down the names of all of its linear layers, as the class that was
    loaded calls them. What is written is the last parts of the names of those that carry an adapter, and a pattern of
    what is left out.
    """
    own = own_class(base)
    config, auto = (base.config, auto_class(base.config)) if own is None else (own.config, own_auto_class(own.config))
    reach = text_reach(auto, config)
    if reach is None:
        return
    adapter: Any = model.peft_config["default"]
    adapted = {name if own is None else own.name(name) for name in model.base_model.targeted_module_names}
    last_parts = {name.split(".")[-1] for name in adapted}
    pattern = _untouched(last_parts, reach)
    found = {name for name in reach.modules if matches_any(last_parts, name)}
    if {name for name in found if pattern is None or not re.fullmatch(pattern, name)} == adapted:
        adapter.target_modules, adapter.exclude_modules = last_parts, pattern
    elif own is not None:
        adapter.target_modules = {own.name_below_parts(name) for name in model.base_model.targeted_module_names}
        adapter.exclude_modules = pattern
    if own is not None and adapter.modules_to_save:
        adapter.modules_to_save = [own.name_below_parts(name) for name in adapter.modules_to_save]


def matches_any(targets: Collection[str], name: str) -> bool:
    """Whether one of the targets names the module `name`."""
    return any(matches(target, {name}) for target in targets)


def matches(target: str, names: Collection[str]) -> bool:
    """Whether `target` is one of the names or their last parts, which is how PEFT reads a list.

    >>> matches("q_proj", {"layers.0.q_proj"}), matches("proj", {"layers.0.q_proj"})
    (True, False)
    """
    return any(name == target or name.endswith(f".{target}") for name in names)


def _untouched(targets: Targets, reach: TextReach | None) -> str | None:
    """The pattern of what text does not go through, if `targets` name anything in it."""
    pattern = untouched_pattern(reach.unreached, reach.reached) if reach is not None else None
    if reach is None or pattern is None or isinstance(targets, str):
        return pattern
    untouched = [name for name in reach.modules if re.fullmatch(pattern, name)]
    return pattern if any(matches(target, untouched) for target in targets) else None


def _routers(base: PreTrainedModel) -> list[str]:
    """Last parts of the names of modules that PEFT takes for linear layers and that are none."""
    modules = [(name, module) for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)]
    return sorted({name.rpartition(".")[2] for name, module in modules if not is_linear(module)})


def _example(target: str, names: Collection[str]) -> str:
    return min(name for name in names if matches(target, {name}))
