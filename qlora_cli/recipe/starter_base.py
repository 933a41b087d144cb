"""Values of a starter recipe that a base on this machine decides: how it is stored, whether it has experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_cli.recipe.base_files import config_here
from qlora_cli.recipe.starter import Choice, StarterValues
from qlora_cli.recipe.stored_weights import stored_weights

NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys under which the configurations of `transformers` have the number of experts."""


def fitted_to_base(values: StarterValues, base_model: str) -> StarterValues:
    """The values with those that the default ones would be refused for on this base; as they are if it is not here."""
    config = config_here(base_model)
    if config is None:
        return values
    if has_experts(config) and values.lora_dropout == StarterValues.lora_dropout:
        values = replace(values, lora_dropout=Choice("0", "adapters on the fused experts of this base take no dropout"))
    stored = stored_weights(config)
    if stored is not None and stored.can_be_dequantized:
        return replace(values, dequantize=Choice("true", f"its weights are stored in {stored}"))
    if stored is not None and stored.is_in_integers:
        return replace(
            values,
            quantization=Choice("", "the base is trained as it is stored, with this section and without"),
            method=Choice("int", f"its weights are stored in {stored}"),
            quant_type=None,
            double_quant=None,
            use_qalora=Choice(
                "true", "the update goes into the groups' offsets: the merged model keeps the base's codes"
            ),
        )
    if stored is None or stored.quant_type is None:
        return values
    double = None
    if stored.double_quant is not None:
        double = Choice(str(stored.double_quant).lower(), "the base decides this too")
    return replace(
        values,
        quantization=Choice("", "the base is trained as it is stored, with this section and without"),
        quant_type=Choice(stored.quant_type, "bitsandbytes has packed the base's weights so"),
        double_quant=double,
    )


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a mixture of experts.

    >>> has_experts({"text_config": {"num_experts": 8}}), has_experts({"num_local_experts": 1}), has_experts({})
    (True, False, False)
    """
    text = config.get("text_config")
    places = (config, text) if isinstance(text, Mapping) else (config,)
    counts = [place.get(key) for place in places for key in NUM_EXPERTS]
    return any(isinstance(count, int) and count > 1 for count in counts)
