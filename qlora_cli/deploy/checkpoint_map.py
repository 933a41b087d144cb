"""Which tensors of a checkpoint a model's parameters are made of, by the rules that transformers loads with.

A released checkpoint names and cuts its tensors in its own way: experts one by one, the language model below another
prefix, query, key and value in one. `from_pretrained` renames and converts them. Here the same rules are read, so that
a changed parameter finds its way back into the tensors that it came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    revert_weight_conversion,
)

from qlora_cli.deploy.checkpoint import Checkpoint
from qlora_cli.errors import IdentityError
from qlora_cli.model.towers.stored_names import Rules, matched_keys


@dataclass(frozen=True)
class Slab:
    """Rows of a parameter that are one whole tensor of the checkpoint."""

    key: str
    start: int
    """First of the rows."""


@dataclass(frozen=True)
class Origin:
    """The tensors of the checkpoint that one parameter, or several at once, are made of."""

    parameters: tuple[str, ...]
    sources: dict[str, list[str]]
    """Keys by the rule's pattern that they match."""

    converter: WeightConverter | None
    """None where the tensor is taken as it is."""

    @property
    def keys(self) -> list[str]:
        """All of them, in the order of the rule."""
        return [key for keys in self.sources.values() for key in keys]


class CheckpointMap:
    """Origins of all parameters of a model in one checkpoint."""

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        """Read the rules.

        Args:
            model: of the class and sizes that the checkpoint is loaded into, not quantized; best on the meta device.
            checkpoint: its tensors.
        """
        self._model = model
        self._checkpoint = checkpoint
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._rules = get_model_conversion_mapping(model)
        self.origins = _origins(model, checkpoint.tensors, self._rules)

    def slabs(self, name: str) -> list[Slab] | None:
        """The rows that each tensor fills, in order; None where a rule mixes rows."""
        origin, tensors = self.origins[name], self._checkpoint.tensors
        shape = self._shapes[name]
        if origin.converter is None:
            [key] = origin.keys
            return [Slab(key, 0)] if tensors[key].shape == shape else None
        kinds = [(type(operation), getattr(operation, "dim", None)) for operation in origin.converter.operations]
        if kinds not in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]) or len(shape) != 3:
            return None
        num_rows, slabs, offset = shape[1], [], 0
        for pattern in origin.converter.source_patterns:
            keys = origin.sources.get(pattern, [])
            if len(keys) != shape[0] or len({tensors[key].shape for key in keys}) != 1:
                return None
            slabs += [Slab(key, index * num_rows + offset) for index, key in enumerate(keys)]
            offset += tensors[keys[0]].num_rows
        return sorted(slabs, key=lambda slab: slab.start) if offset == num_rows else None

    def read(self, origin: Origin) -> dict[str, torch.Tensor]:
        """Parameters as `from_pretrained` makes them of their tensors, in the dtype on disk."""
        if origin.converter is None:
            [key] = origin.keys
            return {origin.parameters[0]: self._checkpoint.read(key)}
        converter = deepcopy(origin.converter)
        for pattern, keys in origin.sources.items():
            for key in keys:
                converter.add_tensor(origin.parameters[0], key, pattern, lambda key=key: self._checkpoint.read(key))
        converted = converter.convert(origin.parameters[0], model=self._model, config=self._model.config)
        return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in converted.items()}

    def key_of(self, name: str) -> str:
        """The name that a checkpoint of this kind has for a parameter, whether it holds it or not."""
        self._note_used_rules()
        [key] = revert_weight_conversion(self._model, {name: torch.empty(0)})
        return key

    def revert(self, origin: Origin, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of the checkpoint that `read` would make `values` of.

        Raises:
            IdentityError: if transformers gives them other names or shapes than the checkpoint has.
        """
        if origin.converter is None:
            return {origin.keys[0]: next(iter(values.values()))}
        self._note_used_rules()
        reverted = _as_named(revert_weight_conversion(self._model, values), origin.keys)
        shapes = {key: self._checkpoint.tensors[key].shape for key in origin.keys}
        if {key: tuple(tensor.shape) for key, tensor in reverted.items()} != shapes:
            raise IdentityError(
                f"'{origin.parameters[0]}' cannot be written as the base's checkpoint stores it: it has "
                f"{sorted(shapes)[0]} {list(shapes[sorted(shapes)[0]])}",
                hint="serve the adapter unmerged, and report this with the name of the base",
            )
        return reverted

    def _note_used_rules(self) -> None:
        """What `from_pretrained` notes: only rules that a name of this checkpoint went through are reverted."""
        self._model._weight_conversions = [rule for rule in self._rules if rule.was_used()]


def _origins(model: PreTrainedModel, keys: Iterable[str], rules: Rules) -> dict[str, Origin]:
    """Walk through the keys as transformers does when it loads them."""
    parameters = model.state_dict()
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    found: dict[str, Origin] = {}
    for key, name, pattern in matched_keys(model, keys, rules):
        converter = None if pattern is None else by_pattern[pattern]
        origin = found.setdefault(name, Origin(_made_of(name, converter, parameters), {}, converter))
        origin.sources.setdefault(pattern or key, []).append(key)
    return {name: origin for origin in found.values() for name in origin.parameters}


def _made_of(name: str, converter: WeightConverter | None, parameters: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """All parameters that a rule makes at once, the one that it is known by first."""
    if converter is None or len(converter.target_patterns) == 1:
        return (name,)
    first = converter.target_patterns[0]
    names = [name.replace(first, target) for target in converter.target_patterns]
    return tuple(other for other in names if other in parameters)


def _as_named(tensors: dict[str, torch.Tensor], keys: list[str]) -> dict[str, torch.Tensor]:
    """The tensors under the checkpoint's keys, which may lack the prefix of the base model or have it twice."""
    named = {}
    for name, tensor in tensors.items():
        alike = [key for key in keys if key == name or key.endswith(f".{name}") or name.endswith(f".{key}")]
        named[alike[0] if len(alike) == 1 else name] = tensor
    return named
