"""The values that a quantized weight had in training, made again from the original in rows.

bitsandbytes quantizes a 4-bit weight in blocks of 64 numbers, so rows can be done one after another, but for double
quantization: it rounds the blocks' constants around the mean of all of them (QLoRA, arXiv:2305.14314, section 3).
Hence two passes: `begin` for the constants, `apply` for the numbers. LLM.int8() (arXiv:2208.07339) has one scale a row.

Shape letters: S = rows at hand, C = columns of a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from torch import nn

from qlora_cli.model.dequantize import INT8_MAX
from qlora_cli.model.device import pick_device


@dataclass
class StoredInFourBit:
    """NF4 or FP4, with or without double quantization."""

    quant_type: str
    blocksize: int
    is_double: bool
    dtype: torch.dtype
    """Of the weight before it was quantized, and after it was dequantized."""

    is_turned: bool = False
    """The weight was turned before it was quantized, as that of `Conv1D` is."""

    is_flat: bool = False
    """The weight was quantized as one long row, as fused experts are."""

    _absmax: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def needs_first_pass(self) -> bool:
        """Whether `begin` must have seen all rows."""
        return self.is_double

    def row_step(self, num_columns: int) -> int:
        """Chunks must start at multiples of this number of rows, so that blocks stay whole."""
        return self.blocksize // gcd(self.blocksize, num_columns)

    def begin(self, chunks: Iterable[torch.Tensor]) -> None:
        """Work out the constants of all blocks from all rows in order."""
        absmax = torch.cat([self._largest(rows_SC) for rows_SC in chunks])
        offset = absmax.mean()
        codes, state = bnb.functional.quantize_blockwise(absmax - offset, blocksize=256)
        self._absmax = bnb.functional.dequantize_blockwise(codes, state) + offset

    def apply(self, rows_SC: torch.Tensor, start: int) -> torch.Tensor:
        """The rows as training multiplied by them, float32."""
        codes, state = self._quantized(rows_SC)
        if self.is_double:
            first = start * rows_SC.shape[1] // self.blocksize
            state.absmax = self._absmax[first : first + state.absmax.numel()].to(state.absmax.device)
        return bnb.functional.dequantize_4bit(codes, state).float().cpu().view(rows_SC.shape)

    def _largest(self, rows_SC: torch.Tensor) -> torch.Tensor:
        """Largest magnitude of each block, which is its constant before double quantization."""
        numbers = rows_SC.to(self.dtype).float().reshape(-1)
        padded = torch.nn.functional.pad(numbers, (0, -len(numbers) % self.blocksize))
        return padded.view(-1, self.blocksize).abs().amax(dim=1)

    def _quantized(self, rows_SC: torch.Tensor) -> tuple[torch.Tensor, QuantState]:
        rows = rows_SC.to(pick_device(), self.dtype).contiguous()
        rows = rows.flatten() if self.is_flat else rows
        return bnb.functional.quantize_4bit(rows, blocksize=self.blocksize, quant_type=self.quant_type)


@dataclass
class StoredInInt8:
    """LLM.int8()."""

    is_turned: bool = False
    needs_first_pass: bool = False

    def row_step(self, num_columns: int) -> int:
        """Rows are quantized one by one."""
        return 1

    def begin(self, chunks: Iterable[torch.Tensor]) -> None:
        """Nothing is shared between rows."""

    def apply(self, rows_SC: torch.Tensor, start: int) -> torch.Tensor:
        """The rows as training multiplied by them, float32."""
        codes, scales_S, _ = bnb.functional.int8_vectorwise_quant(rows_SC.to(pick_device(), torch.float16))
        return (codes * (scales_S[:, None].float() / INT8_MAX)).cpu()


StoredPrecision = StoredInFourBit | StoredInInt8


def stored_precision(module: nn.Module, *, is_turned: bool) -> StoredPrecision:
    """How a layer of bitsandbytes stores its weight.

    Args:
        module: a quantized linear layer.
        is_turned: its plain form keeps [input, output].
    """
    if isinstance(module, bnb.nn.Linear8bitLt):
        return StoredInInt8(is_turned)
    state = getattr(module.weight, "quant_state", None)
    assert isinstance(state, QuantState), "only a loaded layer says how its weight is stored"
    return stored_precision_of(state, is_turned=is_turned)


def stored_precision_of(state: QuantState, *, is_turned: bool = False, is_flat: bool = False) -> StoredInFourBit:
    """How a weight in 4 bit is stored, by the state that bitsandbytes keeps beside it."""
    return StoredInFourBit(state.quant_type, state.blocksize, state.nested, state.dtype, is_turned, is_flat)
