"""Names of a model's parameters in the files of its base, by the rules that transformers loads with."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

Rules = list[WeightRenaming | WeightConverter]


def stored_names(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """The tensors of a checkpoint that are one parameter each, and taken as they are: their keys by its name.

    Args:
        model: of the class and sizes that the checkpoint is loaded into, not quantized; best on the meta device.
        keys: of all of its tensors.
    """
    found = matched_keys(model, keys, get_model_conversion_mapping(model))
    return {name: key for key, name, pattern in found if pattern is None}


def matched_keys(model: PreTrainedModel, keys: Iterable[str], rules: Rules) -> list[tuple[str, str, str | None]]:
    """Keys of a checkpoint, each with the parameter that it goes into, and the pattern of the rule that converts it.

    transformers is walked after as it loads them; a key that goes into no parameter is left out.
    """
    parameters = model.state_dict()
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    found: list[tuple[str, str, str | None]] = []
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, parameters)
        if name not in parameters and key in parameters:
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, parameters)
        if name in parameters:
            found.append((key, name, pattern))
    return found
