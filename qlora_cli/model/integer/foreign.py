"""Layers in integers as others store them, read as ours: W4A16 of compressed-tensors, and GPTQ.

Nothing is rounded. Both keep codes in int32 words, the lowest bits first, which is our order of bytes; GPTQ packs
input features along rows, so a word is turned with its column.

    compressed-tensors   weight_packed int32 [O, I / 8], weight_scale [O, G];  W = (code - 8) * scale
    GPTQ                 qweight int32 [I * bits / 32, O], scales [G, O], qzeros int32 [G, O * bits / 32], g_idx [I];
                         W = (code - zero) * scale; in format `gptq` qzeros hold zero - 1, in `gptq_v2` zero.
                         Symmetric weights have the zero 2^(bits - 1), whatever format they are said to be in

An offset is -zero * scale. Both products are exact in float32 where scales have 16 bits.

Shape letters: O = output features, I = input features, G = groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qlora_cli.errors import RecipeError
from qlora_cli.model.integer.codes import CODES_AT_ONCE, unpack
from qlora_cli.model.stored_tensors import StoredTensors
from qlora_cli.recipe.foreign_integers import weights_of_group

MIDDLE = 8
"""Code of the weight 0 in W4A16."""

BITS_OF_WORD = 32
DEQUANTIZE = "--set model.dequantize=true"
ORIGINAL = "name the original, unquantized model as `base_model`"


@dataclass(frozen=True)
class ForeignLayer(ABC):
    """One linear layer in the files of a base."""

    name: str
    """Of its weight without `weight`, such as `model.layers.0.mlp.up_proj.`."""

    tensors: StoredTensors
    bits: int
    group_size: int
    """-1 for whole rows."""

    @property
    @abstractmethod
    def stored_names(self) -> tuple[str, ...]:
        """Of all its tensors that are not ours; the codes come first."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """[O, I]."""

    @abstractmethod
    def codes(self) -> torch.Tensor:
        """As we pack them, uint8 [O, I * bits / 8]."""

    @abstractmethod
    def scales_and_offsets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [O, G] each."""

    @abstractmethod
    def check(self) -> None:
        """Refuse what config.json did not tell.

        Raises:
            RecipeError: if groups are not of neighbours, or do not fill the rows.
        """

    def _check_groups(self, hint: str) -> None:
        """Refuse a scale for other weights than a group of neighbours."""
        num_inputs = self.shape[1]
        size = weights_of_group(self.group_size, num_inputs)
        groups = self.tensors.shape(self.stored_names[1])
        num_groups = groups[-1] if isinstance(self, CompressedLayer) else groups[0]
        if num_inputs % CODES_AT_ONCE or num_groups * size != num_inputs:
            raise RecipeError(
                f"the {num_inputs} inputs of '{self.name.rstrip('.')}' have {num_groups} scales a row, and groups of "
                f"{size} were to fill them",
                hint=hint,
            )


@dataclass(frozen=True)
class CompressedLayer(ForeignLayer):
    """W4A16 of compressed-tensors."""

    @property
    def stored_names(self) -> tuple[str, ...]:
        parts = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
        return tuple(f"{self.name}{part}" for part in parts if f"{self.name}{part}" in self.tensors)

    @property
    def shape(self) -> tuple[int, int]:
        num_rows, num_columns = self.tensors.whole(f"{self.name}weight_shape").tolist()
        return num_rows, num_columns

    def codes(self) -> torch.Tensor:
        return self.tensors.whole(self.stored_names[0]).view(torch.uint8)

    def scales_and_offsets(self) -> tuple[torch.Tensor, torch.Tensor]:
        scales_OG = self.tensors.whole(f"{self.name}weight_scale").float()
        return scales_OG, -MIDDLE * scales_OG

    def check(self) -> None:
        beside = [name for name in self.stored_names if name.endswith(("weight_zero_point", "weight_g_idx"))]
        if beside:
            raise RecipeError(f"'{beside[0]}' moves weights, which W4A16 taken over cannot do", hint=DEQUANTIZE)
        self._check_groups(DEQUANTIZE)


@dataclass(frozen=True)
class GptqLayer(ForeignLayer):
    """GPTQ."""

    is_symmetric: bool
    holds_zero_less_one: bool
    """By config.json; where weights are symmetric their zero point is known, and the stored one is not believed."""

    @property
    def stored_names(self) -> tuple[str, ...]:
        parts = ("qweight", "scales", "qzeros", "g_idx")
        return tuple(f"{self.name}{part}" for part in parts if f"{self.name}{part}" in self.tensors)

    @property
    def shape(self) -> tuple[int, int]:
        num_words, num_outputs = self.tensors.shape(self.stored_names[0])
        return num_outputs, num_words * BITS_OF_WORD // self.bits

    def codes(self) -> torch.Tensor:
        return self.tensors.whole(self.stored_names[0]).T.contiguous().view(torch.uint8)

    def scales_and_offsets(self) -> tuple[torch.Tensor, torch.Tensor]:
        scales_GO = self.tensors.whole(f"{self.name}scales").float()
        if self.is_symmetric:
            zeros_GO = torch.full_like(scales_GO, 2 ** (self.bits - 1))
        else:
            zeros_GO = self._stored_zeros().float() + self.holds_zero_less_one
        return scales_GO.T.contiguous(), (-zeros_GO * scales_GO).T.contiguous()

    def check(self) -> None:
        self._check_groups(ORIGINAL)
        num_inputs = self.shape[1]
        size = weights_of_group(self.group_size, num_inputs)
        if f"{self.name}g_idx" in self.tensors:
            groups = self.tensors.whole(f"{self.name}g_idx").long()
            if not torch.equal(groups, torch.arange(num_inputs) // size):
                raise RecipeError(
                    f"the columns of '{self.name.rstrip('.')}' are sorted (g_idx), and neighbours do not share a scale",
                    hint=ORIGINAL,
                )
        zeros, middle = self._stored_zeros(), 2 ** (self.bits - 1)
        if self.is_symmetric and not any((zeros == known).all() for known in (middle, middle - 1)):
            raise RecipeError(
                f"the base is symmetric by its config.json, and '{self.name}qzeros' holds other zero points than "
                f"{middle} or {middle - 1}, which is how symmetric weights are written",
                hint=ORIGINAL,
            )
        if not self.is_symmetric and self.holds_zero_less_one and (zeros == 2**self.bits - 1).any():
            raise RecipeError(
                f"'{self.name}qzeros' holds {2**self.bits - 1} in the format gptq, which some libraries read as a zero "
                f"point of {2**self.bits} and some as one of 0",
                hint=f"quantize it again with the format gptq_v2, or {ORIGINAL}",
            )

    def _stored_zeros(self) -> torch.Tensor:
        """uint8 [G, O]."""
        return unpack(self.tensors.whole(f"{self.name}qzeros").view(torch.uint8), self.bits)


def foreign_layers(
    tensors: StoredTensors, settings: Mapping[str, Any], bits: int, group_size: int
) -> list[ForeignLayer]:
    """All layers of a base in integers of others, in the order of its files.

    Args:
        settings: its `quantization_config`.
        bits: of a code.
        group_size: as config.json has it, -1 for whole rows.
    """
    layout = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    is_symmetric = settings.get("sym") is True
    layers: list[ForeignLayer] = []
    for name in tensors.names:
        if name.endswith(".weight_packed"):
            layers.append(CompressedLayer(name.removesuffix("weight_packed"), tensors, bits, group_size))
        elif name.endswith(".qweight"):
            name = name.removesuffix("qweight")
            layers.append(GptqLayer(name, tensors, bits, group_size, is_symmetric, layout == "gptq"))
    return layers
