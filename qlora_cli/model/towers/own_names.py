"""Names of modules on a base's own class, where another one was loaded.

Of a checkpoint such as Qwen3.5's, transformers loads the language model alone, as a class whose layers are called
`model.layers.0`. On the class that the checkpoint is made of, which engines serve, they are called
`model.language_model.layers.0`. An adapter folder has the latter names, so it fits the base as it was released.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from qlora_cli.model.towers.auto_class import is_loaded_whole, own_auto_class
from qlora_cli.model.towers.skeleton import bare_skeleton

ADAPTER_PREFIX = "base_model.model."
"""Before every name of a PEFT adapter."""

_ATTRIBUTE = "own_class_of_base"

Tensors = dict[str, torch.Tensor]

Value = TypeVar("Value")

Renaming = tuple[str, str]
"""A part's name on the loaded class, and on the base's own; empty for the whole model."""


@dataclass(frozen=True)
class OwnClass:
    """The class that a base's files are made of, where only a part of it was loaded."""

    config: PreTrainedConfig
    """Of the whole base."""

    renamings: tuple[Renaming, ...]
    """Parts that were loaded, by both of their names."""

    def name(self, loaded: str) -> str:
        """The name on the own class of a module, parameter or adapter tensor of the loaded one.

        >>> OwnClass(PreTrainedConfig(), (("model", "model.language_model"),)).name("model.layers.0.mlp")
        'model.language_model.layers.0.mlp'
        """
        return _renamed(loaded, self.renamings)

    def loaded_name(self, own: str) -> str:
        """The name on the loaded class; a name that is one of the loaded class already stays.

        >>> OwnClass(PreTrainedConfig(), (("model", "model.language_model"),)).loaded_name("model.layers.0.mlp")
        'model.layers.0.mlp'
        """
        return _renamed(own, [(target, source) for source, target in self.renamings])

    def name_below_parts(self, loaded: str) -> str:
        """What is left of a module's name below the part that it is in: as a suffix it names it on both classes."""
        for part, _ in self.renamings:
            if part and loaded.startswith(f"{part}."):
                return loaded.removeprefix(f"{part}.")
        return loaded


def note_own_class(base: PreTrainedModel, config: PreTrainedConfig) -> None:
    """Remember of a base that was just loaded what its own class is, where that is another one.

    Args:
        config: of the whole base, as its config.json has it.
    """
    if is_loaded_whole(base, config):
        return
    whole = bare_skeleton(own_auto_class(config), config)
    renamings = _renamings(base, whole)
    names = {name for name, _ in whole.named_parameters(remove_duplicate=False)}
    if all(_renamed(name, renamings) in names for name, _ in base.named_parameters()):
        setattr(base, _ATTRIBUTE, OwnClass(config, renamings))


def own_class(base: PreTrainedModel) -> OwnClass | None:
    """What `note_own_class` has noted: None where the base was loaded as the class that its files are made of."""
    return getattr(base, _ATTRIBUTE, None)


def with_own_names(base: PreTrainedModel, tensors: Tensors) -> Tensors:
    """Tensors of an adapter on `base` by their names on its own class."""
    own = own_class(base)
    return {own.name(name): tensor for name, tensor in tensors.items()} if own else tensors


def with_loaded_names(base: PreTrainedModel, values: dict[str, Value]) -> dict[str, Value]:
    """What is known of an adapter's tensors, as either class names them, by their names on `base`."""
    own = own_class(base)
    return {own.loaded_name(name): value for name, value in values.items()} if own else values


def adapter_key_mapping(base: PreTrainedModel) -> dict[str, str] | None:
    """Patterns and what replaces them, by which PEFT reads an adapter of the own class onto `base`; None: as it is."""
    own = own_class(base)
    if own is None:
        return None
    return {
        rf"^{re.escape(target)}\.": f"{source}." if source else ""
        for source, target in own.renamings
        if source != target
    }


def _renamings(loaded: PreTrainedModel, whole: PreTrainedModel) -> tuple[Renaming, ...]:
    """The topmost models inside `loaded` whose class is in `whole` once, and the output head."""
    kinds = Counter(type(module) for module in whole.modules())
    places = {type(module): name for name, module in whole.named_modules() if kinds[type(module)] == 1}
    found: list[Renaming] = []
    for name, module in loaded.named_modules():
        is_below = any(part == "" or name.startswith(f"{part}.") for part, _ in found)
        if isinstance(module, PreTrainedModel) and type(module) in places and not is_below:
            found.append((name, places[type(module)]))
    head, whole_head = _head(loaded), _head(whole)
    if head is not None and whole_head is not None and not any(part == "" for part, _ in found):
        found.append((head, whole_head))
    return tuple(found)


def _head(model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None) if head is not None else None


def _renamed(name: str, renamings: Iterable[Renaming]) -> str:
    """`name` with its part called otherwise, before it PEFT's prefix if it has one."""
    prefix = ADAPTER_PREFIX if name.startswith(ADAPTER_PREFIX) else ""
    plain = name.removeprefix(prefix)
    for source, target in renamings:
        if source == "":
            return f"{prefix}{target}.{plain}"
        if plain == source or plain.startswith(f"{source}."):
            rest = plain.removeprefix(source).removeprefix(".")
            return prefix + ".".join(part for part in (target, rest) if part)
    return name
