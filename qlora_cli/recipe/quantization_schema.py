"""The recipe keys of how a base's weights are stored while adapters are trained on it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from qlora_cli.recipe.coercions import Names
from qlora_cli.recipe.section import Section

DEFAULT_BITS, DEFAULT_GROUP_SIZE = 4, 32
"""Of `quantization.method: int`."""


class QuantizationSection(Section):
    """Storage of the frozen weights in few bits (QLoRA, arXiv:2305.14314). Leave it out for 16-bit LoRA, or where the
    base is stored in few bits already: what that is decides."""

    method: Literal["bitsandbytes", "int", "w4a16"] = "bitsandbytes"
    """bitsandbytes: packed while the base is loaded, as `quant_type` says. int: evenly spaced levels with a scale and
    an offset for each group of weights, which are made once and kept; with `lora.use_qalora` the merged model stays
    in them without loss. w4a16: the codes of a base that is stored in W4A16 of compressed-tensors, as they are; vLLM
    then serves the adapter on that very base."""

    quant_type: Literal["nf4", "fp4", "int8"] = "nf4"
    """nf4: 16 levels at the quantiles of a normal distribution, blocks of 64 (section 3 of the paper). fp4: 4-bit
    float. int8: LLM.int8() (arXiv:2208.07339). Of `method: bitsandbytes`."""

    double_quant: bool | None = None
    """Quantize the block constants too: 0.127 instead of 0.5 bit per parameter. On for nf4 and fp4 unless set to
    false; int8 has none."""

    experts: bool | None = None
    """Quantize the experts of a mixture too, which `transformers` keeps in fused weights of three dimensions. On for
    nf4 and fp4 unless set to false; int8 and `method: int` leave them in 16 bit."""

    bits: Literal[4, 3, 2] | None = None
    """Of a weight, with `method: int`; 4 unless set. w4a16 has 4."""

    group_size: Literal[-1, 32, 64, 128] | None = None
    """Weights in a row that share a scale and an offset of 16 bit each, with `method: int`; 32 unless set, as in
    QA-LoRA (arXiv:2309.14717, section 4.1): one bit more a weight, half a bit at 64. -1: the whole row shares them.
    With w4a16 that of the base."""

    calibration: Literal["none", "rows"] = "none"
    """With `method: int`. none: each weight goes to its nearest level. rows: GPTQ (arXiv:2210.17323) on 16,384 tokens
    of the run's own training rows, which make a base for this run alone, kept in its folder; the base is loaded once
    in 16 bit for it."""

    skip_modules: Names = ()
    """Modules left in 16 bit beside the output head, by the last part of their name, e.g. `[down_proj]`."""

    @model_serializer(mode="wrap")
    def _without_other_method(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `quant_type` out where it means nothing, so that what is written down can be read again."""
        content: dict[str, Any] = dump(self)
        if self.is_in_integers:
            content.pop("quant_type", None)
        return content

    @property
    def kind(self) -> str:
        """The form of a weight in one word.

        >>> QuantizationSection().kind, QuantizationSection(method="int", bits=3).kind
        ('nf4', 'int3')
        """
        if self.is_in_integers:
            return f"int{self.num_bits}" if self.method == "int" else self.method
        return self.quant_type

    @property
    def is_in_integers(self) -> bool:
        """Whether the base lies in a folder of our integers, rounded here or taken over."""
        return self.method in ("int", "w4a16")

    @property
    def is_served_as_stored(self) -> bool:
        """Whether engines open the base that was named and have the weights of training, without a copy of it."""
        return self.method == "w4a16"

    @property
    def num_bits(self) -> int:
        """Of a weight.

        >>> QuantizationSection().num_bits, QuantizationSection(quant_type="int8").num_bits
        (4, 8)
        """
        if self.is_in_integers:
            return self.bits or DEFAULT_BITS
        return 8 if self.quant_type == "int8" else 4

    @property
    def weights_in_group(self) -> int:
        """`group_size`, or what stands for it."""
        return self.group_size or DEFAULT_GROUP_SIZE

    @property
    def is_calibrated(self) -> bool:
        """Whether rows decide how the base is rounded."""
        return self.calibration == "rows"

    @property
    def is_int8(self) -> bool:
        """Whether it is LLM.int8() of bitsandbytes, which chooses columns by the batch."""
        return self.kind == "int8"
