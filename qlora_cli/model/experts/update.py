"""An adapter on quantized experts: the update is added when the weight is read.

PEFT puts a parametrization on the weight for each forward pass, reads the weight three more times to look at its
shape and dtype, and cannot take its parametrization off again where there is another below it. Over quantized experts
each read would dequantize a layer, so the wrapper hands its factors to the weight's reader instead. Its parameters,
names and files stay PEFT's.

Shape letters: E = experts, O = output features, I = input features, R = rank of the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class ExpertsUpdate:
    """The low-rank updates of all experts of one weight."""

    A_ERI: torch.Tensor
    B_EOR: torch.Tensor
    scaling: float
    is_output_first: bool
    """The weight is [E, O, I]; else [E, I, O]."""

    @classmethod
    def of(cls, wrapper: Any, adapter: str) -> ExpertsUpdate:
        """The update of PEFT's `ParamWrapper`, which keeps A as [E x R, I] and B as [O, R x E]."""
        A, B = wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight
        return cls(
            A.reshape(wrapper.num_experts, -1, A.shape[-1]),
            B.reshape(B.shape[0], -1, wrapper.num_experts).permute(2, 0, 1),
            wrapper.scaling[adapter],
            wrapper._did_swap_in_out_features,
        )

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """weight + scaling * B @ A in the weight's dtype, as PEFT adds it to experts in 16 bit."""
        A, B = self.A_ERI.to(weight.dtype), self.B_EOR.to(weight.dtype)
        left, right = (B, A) if self.is_output_first else (A.mT, B.mT)
        with torch.autocast(weight.device.type, enabled=False):
            return torch.baddbmm(weight, left, right, alpha=self.scaling)


@contextmanager
def update_is_on(wrapper: Any, reader: Any, adapters: Sequence[str]) -> Iterator[None]:
    """While the block runs, `reader` gives the weight with the update of the one adapter in `adapters`, if any.

    Raises:
        ValueError: if there are several.
    """
    names = [name for name in adapters if name in wrapper.lora_A]
    if len(names) > 1:
        raise ValueError(f"{len(names)} adapters on one weight of quantized experts")
    if not names:
        yield
        return
    reader.update = ExpertsUpdate.of(wrapper, names[0])
    try:
        with parametrize.cached():
            yield
    finally:
        reader.update = None
