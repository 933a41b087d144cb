"""How a base's weights are stored, by its config.json: plain, by bitsandbytes, in integers, or otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qlora_cli.constants import INTEGERS
from qlora_cli.recipe.foreign_integers import COMPRESSED_TENSORS, WHOLE_ROW, integers_of

QuantType = Literal["nf4", "fp4", "int8"]

DEQUANTIZED_ON_LOAD = {"fp8": "FP8", "mxfp8": "MXFP8", "mxfp4": "MXFP4", "compressed-tensors": "compressed-tensors"}
"""Methods whose weights `transformers` can turn into plain ones while it loads them, with their usual names."""

DEFAULT_QUANT_TYPE = "fp4"
"""What a bitsandbytes configuration in 4 bit means that names no type."""


@dataclass(frozen=True)
class StoredWeights:
    """The form in which the weights of a base lie on disk, where it is not the plain one."""

    method: str
    """`quant_method` of config.json: bitsandbytes, gptq, awq, fp8, mxfp4 and so on."""

    quant_type: QuantType | None = None
    """In the recipe's words where the method is bitsandbytes, else None."""

    double_quant: bool | None = None
    """Whether the block constants are quantized too; None where the method has none."""

    skipped: tuple[str, ...] | None = None
    """Names and parts of names of modules that are not quantized; None leaves the choice to `transformers`."""

    num_bits: int | None = None
    """Of a weight, where the configuration says."""

    group_size: int | None = None
    """Weights that share a scale, of integers; -1 for a whole row."""

    is_taken_over: bool = False
    """Whether it is in integers of others whose codes and scales become ours as they are."""

    obstacle: str | None = None
    """Of integers of others: why they cannot be taken over."""

    @property
    def is_bitsandbytes(self) -> bool:
        """Whether bitsandbytes has packed it, in 4 or 8 bit."""
        return self.quant_type is not None

    @property
    def is_in_integers(self) -> bool:
        """Whether it is in our own integers."""
        return self.method == INTEGERS

    @property
    def is_trained_as_stored(self) -> bool:
        """Whether adapters are trained on it as it is."""
        return self.is_bitsandbytes or self.is_in_integers

    @property
    def integer_method(self) -> Literal["int", "w4a16"]:
        """`quantization.method` of a base in integers; vLLM serves one in W4A16 as it is."""
        return "w4a16" if self.method == COMPRESSED_TENSORS else "int"

    @property
    def can_be_dequantized(self) -> bool:
        """Whether `model.dequantize: true` makes plain weights of it."""
        return self.method in DEQUANTIZED_ON_LOAD

    def __str__(self) -> str:
        if self.quant_type is not None:
            return f"{self.quant_type} by bitsandbytes" + (" with double quantization" if self.double_quant else "")
        if self.is_in_integers:
            return f"int{self.num_bits} in {grouping(self.group_size)}"
        if self.is_taken_over and self.integer_method == "w4a16":
            return f"W4A16 in {grouping(self.group_size)}"
        name = DEQUANTIZED_ON_LOAD.get(self.method, self.method.upper() if len(self.method) < 6 else self.method)
        is_said = self.num_bits is None or str(self.num_bits) in name
        return name if is_said else f"{name} in {self.num_bits} bit"


def stored_weights(config: Mapping[str, Any]) -> StoredWeights | None:
    """The form that a base's config.json names; None where its weights are plain.

    Args:
        config: config.json. The section is at its top, or in the part for the text of a model that sees as well.

    >>> str(stored_weights({"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    'GPTQ in 4 bit'
    >>> stored_weights({"quantization_config": {"load_in_4bit": True}}).quant_type, stored_weights({"hidden_size": 64})
    ('fp4', None)
    """
    section = stored_section(config)
    return _from_section(section) if section else None


def stored_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`quantization_config` of a base's config.json; empty where it has none."""
    text = config.get("text_config")
    places = (config, text) if isinstance(text, Mapping) else (config,)
    for place in places:
        for key in ("quantization_config", "compression_config"):  # the second is an older name of the first
            section = place.get(key)
            if isinstance(section, Mapping) and section:
                return section
    return {}


def _from_section(section: Mapping[str, Any]) -> StoredWeights:
    skipped = section.get("llm_int8_skip_modules")
    names = tuple(map(str, skipped)) if isinstance(skipped, list | tuple) else None
    if section.get("load_in_4bit"):
        kind: QuantType = "nf4" if section.get("bnb_4bit_quant_type", DEFAULT_QUANT_TYPE) == "nf4" else "fp4"
        return StoredWeights("bitsandbytes", kind, section.get("bnb_4bit_use_double_quant") is True, names, 4)
    if section.get("load_in_8bit"):
        return StoredWeights("bitsandbytes", "int8", None, names, 8)
    bits = section.get("bits", section.get("w_bit"))
    if section.get("quant_method") == INTEGERS:
        kept = section.get("modules_to_not_convert")
        names = tuple(map(str, kept)) if isinstance(kept, list | tuple) else None
        return StoredWeights(INTEGERS, skipped=names, num_bits=bits, group_size=section.get("group_size"))
    method = section.get("quant_method") or section.get("quant_algo")
    if method is None and "config_groups" in section:
        method = "compressed-tensors"
    method, num_bits = str(method or "a form without a name"), bits if isinstance(bits, int) else None
    if integers := integers_of(method, section):
        is_taken_over = integers.obstacle is None
        num_bits = integers.bits if is_taken_over else num_bits
        size = integers.group_size if is_taken_over else None
        return StoredWeights(method, None, None, None, num_bits, size, is_taken_over, integers.obstacle)
    return StoredWeights(method, num_bits=num_bits)


def grouping(group_size: int | None) -> str:
    """Which weights share a scale.

    >>> grouping(64), grouping(-1)
    ('groups of 64', 'whole rows')
    """
    return "whole rows" if group_size == WHOLE_ROW else f"groups of {group_size}"
