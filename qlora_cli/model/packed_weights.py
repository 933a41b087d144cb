"""Weights that a folder of safetensors holds packed, read as plain numbers, some rows at a time.

Bytes are read for the rows that are asked for, so memory does not grow with the tensor. Layouts: bitsandbytes in 4 and
8 bit, FP8 with a scale for each block (DeepSeek-V3, arXiv:2412.19437, section 3.3) and MXFP4 (OCP Microscaling
Formats 1.0, section 5.1), as `transformers` stores them; and our own integers, with scale and offset for each group.

Shape letters: O = output features, I = input features, E = experts, G = groups of 32.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from safetensors import safe_open

from qlora_cli.errors import IdentityError
from qlora_cli.model.dequantize import INT8_MAX
from qlora_cli.model.fingerprint import weight_files
from qlora_cli.model.integer.codes import unpack
from qlora_cli.recipe.stored_weights import stored_section

FOUR_BIT_STATE = ".quant_state.bitsandbytes__"
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The sixteen numbers of E2M1."""

E8M0_BIAS = 127


class StoredTensors:
    """The tensors of a model folder by name, read in slices."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        self._names: dict[Path, list[str]] = {}
        for path in weight_files(folder):
            file = safe_open(path, framework="pt").__enter__()
            self._names[path] = list(file.keys())
            self._files |= dict.fromkeys(self._names[path], file)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._files)

    def names_in(self, path: Path) -> list[str]:
        """Names of the tensors in one of the folder's files."""
        return self._names[path]

    def whole(self, name: str) -> torch.Tensor:
        """A whole tensor, for the small ones."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor."""
        tensor: torch.Tensor = self._files[name].get_slice(name)[start:stop]
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; nothing of its content is read."""
        return tuple(self._files[name].get_slice(name).get_shape())


@dataclass(frozen=True)
class Packed(ABC):
    """One weight in a packed form."""

    name: str
    """Name that the weight would have if it were stored plain, such as `model.layers.0.mlp.up_proj.weight`."""

    tensors: StoredTensors

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the plain weight."""

    @property
    @abstractmethod
    def stored_names(self) -> tuple[str, ...]:
        """Names of the tensors that hold it, which a plain weight stands in for."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of the plain weight in float32, on the CPU."""


@dataclass(frozen=True)
class FourBit(Packed):
    """NF4 or FP4 of bitsandbytes: two weights a byte, an absmax for each block, quantized once more or not."""

    state_name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._state["shape"])

    @property
    def stored_names(self) -> tuple[str, ...]:
        beside = ("absmax", "quant_map", *(("nested_absmax", "nested_quant_map") if self._is_nested else ()))
        return (self.name, *(f"{self.name}.{part}" for part in beside), self.state_name)

    @property
    def _is_nested(self) -> bool:
        return "nested_blocksize" in self._state

    @property
    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(bytes(self.tensors.whole(self.state_name).tolist()))
        return state

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """As bitsandbytes dequantizes them: in the dtype of the quantized weight, then as float32."""
        state, width = self._state, prod(self.shape[1:])
        block = state["blocksize"]
        first, last = start * width // block, ceil(stop * width / block)
        item = 2 * self.tensors.part(self.name, 0, 1).element_size()  # weights in one stored number
        end = min(last * block, prod(self.shape))
        packed = self.tensors.part(self.name, first * block // item, ceil(end / item))
        quant_state = QuantState(
            absmax=self._absmax(state, first, last),
            shape=torch.Size((end - first * block,)),
            dtype=getattr(torch, state["dtype"]),
            blocksize=block,
            code=self.tensors.whole(f"{self.name}.quant_map"),
            quant_type=state["quant_type"],
        )
        flat = bnb.functional.dequantize_4bit(packed.contiguous().view(torch.uint8).reshape(-1, 1), quant_state)
        skipped = start * width - first * block
        return flat.flatten()[skipped : skipped + (stop - start) * width].reshape(-1, *self.shape[1:]).float()

    def _absmax(self, state: Mapping[str, Any], first: int, last: int) -> torch.Tensor:
        """Constants of blocks `first` to `last`; the second quantization keeps one constant for each of its blocks."""
        absmax = self.tensors.part(f"{self.name}.absmax", first, last)
        if "nested_blocksize" not in state:
            return absmax.float()
        nested = state["nested_blocksize"]
        scales = self.tensors.part(f"{self.name}.nested_absmax", first // nested, ceil(last / nested))
        levels = self.tensors.whole(f"{self.name}.nested_quant_map")
        scale = scales[torch.arange(first, last) // nested - first // nested]
        return levels[absmax.long()] * scale + state["nested_offset"]


@dataclass(frozen=True)
class EightBit(Packed):
    """int8 of bitsandbytes, with one scale a row."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensors.shape(self.name)

    @property
    def stored_names(self) -> tuple[str, ...]:
        module = self.name.removesuffix("weight")
        return tuple(name for name in (self.name, f"{module}SCB", f"{module}weight_format") if name in self.tensors)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        scale = self.tensors.part(f"{self.name.removesuffix('weight')}SCB", start, stop)
        return self.tensors.part(self.name, start, stop) * (scale[:, None].float() / INT8_MAX)


@dataclass(frozen=True)
class BlockScaled(Packed):
    """FP8: each block of the weight has a scale; the last blocks of a row or column may be shorter."""

    block: tuple[int, int] | None
    """Rows and columns of a block; None where the whole weight has one scale."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensors.shape(self.name)

    @property
    def stored_names(self) -> tuple[str, ...]:
        scales = (f"{self.name}_scale_inv", f"{self.name.removesuffix('weight')}activation_scale")
        return (self.name, *(name for name in scales if name in self.tensors))

    def rows(self, start: int, stop: int) -> torch.Tensor:
        weight_OI = self.tensors.part(self.name, start, stop).float()
        scale_name = f"{self.name}_scale_inv"
        if self.block is None or prod(self.tensors.shape(scale_name)) == 1:
            return weight_OI * as_scale(self.tensors.whole(scale_name)).reshape(())
        height, width = self.block
        scales = as_scale(self.tensors.part(scale_name, start // height, ceil(stop / height)))
        rows = torch.arange(start, stop) // height - start // height
        columns = torch.arange(self.shape[1]) // width
        return weight_OI * scales[rows][:, columns]


@dataclass(frozen=True)
class MicroScaled(Packed):
    """MXFP4 of gpt-oss: fused experts of which 32 weights in a row share a power of two; rows are experts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[E, I, O], the other way round than it is stored."""
        num_experts, num_outputs, num_groups, _ = self.tensors.shape(f"{self.name}_blocks")
        return num_experts, num_groups * 32, num_outputs

    @property
    def stored_names(self) -> tuple[str, ...]:
        return f"{self.name}_blocks", f"{self.name}_scales"

    def rows(self, start: int, stop: int) -> torch.Tensor:
        blocks = self.tensors.part(f"{self.name}_blocks", start, stop)
        scales = as_scale(self.tensors.part(f"{self.name}_scales", start, stop))
        values = torch.tensor(FP4_VALUES)
        pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], dim=-1)
        return (pairs.flatten(-2) * scales[..., None]).flatten(-2).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class IntegerGroups(Packed):
    """Our integers: a code a weight, and a scale and an offset for each group of columns."""

    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        num_rows, num_bytes = self.tensors.shape(self.stored_names[0])
        return num_rows, num_bytes * 8 // self.bits

    @property
    def stored_names(self) -> tuple[str, ...]:
        module = self.name.removesuffix("weight")
        return f"{module}codes", f"{module}scales", f"{module}offsets"

    def rows(self, start: int, stop: int) -> torch.Tensor:
        codes, scales_OG, offsets_OG = (self.tensors.part(name, start, stop) for name in self.stored_names)
        codes_OGI = unpack(codes, self.bits).unflatten(1, (scales_OG.shape[1], -1))
        return (codes_OGI * scales_OG.float()[..., None] + offsets_OG.float()[..., None]).flatten(1)


def as_scale(stored: torch.Tensor) -> torch.Tensor:
    """A scale in float32; one that is stored as a byte is the exponent of a power of two.

    >>> as_scale(torch.tensor([126, 128], dtype=torch.uint8))
    tensor([0.5000, 2.0000])
    """
    return (stored.float() - E8M0_BIAS).exp2() if stored.dtype == torch.uint8 else stored.float()


def packed_weights(folder: Path) -> dict[str, Packed]:
    """The weights of a model folder that are stored packed, by the name that they would have if they were plain.

    Raises:
        IdentityError: if the folder has no weights, or a part of a packed one is missing.
    """
    tensors = StoredTensors(folder)
    found: dict[str, Packed] = {}
    for name in tensors.names:
        if FOUR_BIT_STATE in name:
            plain = name.partition(FOUR_BIT_STATE)[0]
            found[plain] = FourBit(plain, tensors, name)
        elif name.endswith(".SCB"):
            plain = f"{name.removesuffix('SCB')}weight"
            found[plain] = EightBit(plain, tensors)
        elif name.endswith("_scale_inv"):
            plain = name.removesuffix("_scale_inv")
            found[plain] = BlockScaled(plain, tensors, _block_size(folder))
        elif name.endswith(".codes"):
            plain = f"{name.removesuffix('codes')}weight"
            found[plain] = IntegerGroups(plain, tensors, stored_section(_config(folder))["bits"])
        elif name.endswith("_blocks") and f"{name.removesuffix('blocks')}scales" in tensors:
            plain = name.removesuffix("_blocks")
            found[plain] = MicroScaled(plain, tensors)
    for one in found.values():
        if missing := [name for name in one.stored_names if name not in tensors]:
            raise IdentityError(f"'{folder}' lacks '{missing[0]}'", hint="download the base model again")
    return found


def _config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return content


def _block_size(folder: Path) -> tuple[int, int] | None:
    size = stored_section(_config(folder)).get("weight_block_size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(one, int) and one > 0 for one in size):
        raise IdentityError(
            f"has a weight_block_size of {size!r}", place=str(folder / "config.json"), hint="download the model again"
        )
    return size[0], size[1]
