"""LoRA of many adapters in one pass: each layer computes rows of one adapter as one product, all adapters at once.

The way of Punica (Chen et al. 2023, arXiv:2310.18547, section 4) and S-LoRA (Sheng et al. 2023, arXiv:2311.03285), here
as batched matrix products of torch. PEFT computes one adapter after the other in each layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.functional import linear, pad

# A = adapters in a stack, G = groups of rows, M = rows of the longest group, N = tokens of M rows, R = rank,
# I and O = inputs and outputs of a layer


@dataclass(frozen=True)
class Groups:
    """Rows of a batch, put together by adapter. Shorter groups repeat their first row, up to the longest."""

    members: torch.Tensor
    """Place of each group's adapter in the stack: int64 of shape [groups]."""

    rows: torch.Tensor
    """Rows of the batch: int64 of shape [groups, longest]."""

    adapted: torch.Tensor
    """Rows of the batch that have an adapter: int64 of shape [rows with one]."""

    places: torch.Tensor
    """Where each of `adapted` stands in `rows`, flattened: int64 of shape [rows with one]."""

    only: int | None
    """The adapter's place in the stack where every row has the same one."""


class StackedLora:
    """Adapters of a model as stacks. PEFT's layers must be switched off while rows are computed by them.

    PEFT's tensors become views of the stacks, so that nothing is held twice.
    """

    def __init__(self, layers: Sequence[LoraLayer], adapters: Collection[str]) -> None:
        """
        Args:
            layers: of PEFT, plain linear layers and embeddings, which are given whole rows.
            adapters: names in PEFT of those that are stacked.
        """
        self._rows: Sequence[str | None] | None = None
        self._groups: dict[tuple[str, ...], Groups | None] = {}
        for layer in layers:
            for stack in _stacks_of(layer, adapters):
                layer.register_forward_hook(partial(self._added, stack))

    @contextmanager
    def computing(self, adapters: Sequence[str | None]) -> Iterator[None]:
        """Passes within are of rows that have these adapters; None is a row of the base."""
        self._rows = adapters
        try:
            yield
        finally:
            self._rows = None
            self._groups.clear()

    def _added(self, stack: _Stack, layer: LoraLayer, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        if self._rows is None:
            return output
        if stack.names not in self._groups:
            self._groups[stack.names] = group(self._rows, stack.names, output.device)
        groups = self._groups[stack.names]
        return output if groups is None else stack.add(output, args[0], groups)


def group(rows: Sequence[str | None], names: Sequence[str], device: torch.device) -> Groups | None:
    """Put rows together by adapter; None where no row has one of the adapters.

    Args:
        rows: adapter of each row, None for the base.
        names: adapters in the order of a stack; rows of others are left out.
    """
    found: dict[int, list[int]] = {}
    for row, name in enumerate(rows):
        if name in names:
            found.setdefault(names.index(name), []).append(row)
    if not found:
        return None
    longest = max(map(len, found.values()))
    members = sorted(found)
    filled = [found[member] + found[member][:1] * (longest - len(found[member])) for member in members]
    places = {
        row: number * longest + at for number, member in enumerate(members) for at, row in enumerate(found[member])
    }
    adapted = sorted(places)
    return Groups(
        torch.tensor(members, device=device),
        torch.tensor(filled, device=device),
        torch.tensor(adapted, device=device),
        torch.tensor([places[row] for row in adapted], device=device),
        members[0] if len(members) == 1 and len(adapted) == len(rows) else None,
    )


def _stacks_of(layer: LoraLayer, adapters: Collection[str]) -> list[_Stack]:
    """One stack for each dtype that adapters of a layer have: each is computed in its own."""
    by_dtype: dict[torch.dtype, list[str]] = {}
    for name in [*layer.lora_A, *layer.lora_embedding_A]:
        if name in adapters:
            by_dtype.setdefault(_factors(layer, name)[0].dtype, []).append(name)
    return [_Stack(layer, tuple(names)) for names in by_dtype.values()]


def _factors(layer: LoraLayer, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """A of shape [rank, inputs] and B of shape [outputs, rank], PEFT's own."""
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    return layer.lora_A[name].weight, layer.lora_B[name].weight


class _Stack:
    """Adapters of one layer. Ranks are filled up with zeros to the largest, which changes no sum."""

    def __init__(self, layer: LoraLayer, names: tuple[str, ...]) -> None:
        self.names = names
        self._is_embedding = names[0] in layer.lora_embedding_A
        factors = [_factors(layer, name) for name in names]
        rank = max(len(a) for a, _ in factors)
        a_ARI = torch.stack([pad(a.data, (0, 0, 0, rank - len(a))) for a, _ in factors])
        b_AOR = torch.stack([pad(b.data, (0, rank - b.shape[1])) for _, b in factors])
        for (a, b), whole_a, whole_b in zip(factors, a_ARI, b_AOR, strict=True):
            a.data, b.data = whole_a[: len(a)], whole_b[:, : b.shape[1]]
        self._a_ARI, self._b_AOR = a_ARI, b_AOR
        self._bias_AO = None if self._is_embedding else _biases(layer, names)
        self._scaling = [_scaling(layer, name) for name in names]
        self._scaling_A11 = b_AOR.new_tensor(self._scaling)[:, None, None]

    def add(self, output: torch.Tensor, inputs: torch.Tensor, groups: Groups) -> torch.Tensor:
        """The layer's output with what the adapters add to their rows.

        Args:
            output: of the base layer, of shape [rows, tokens, outputs].
            inputs: of the layer: tokens of an embedding, else of shape [rows, tokens, inputs].
            groups: of the rows.
        """
        if groups.only is not None:
            return self._with_one(output, inputs, groups.only)
        added = self._of_groups(inputs[groups.rows].flatten(1, 2), groups)
        added = added.view(-1, *output.shape[1:])[groups.places]
        if len(groups.places) == len(output):
            return (output + added).to(output.dtype)
        return output.index_add(0, groups.adapted, added.to(output.dtype))

    def _with_one(self, output: torch.Tensor, inputs: torch.Tensor, member: int) -> torch.Tensor:
        """As `add`, where every row has the same adapter: nothing is put together."""
        a_RI, b_OR = self._a_ARI[member], self._b_AOR[member]
        inner = a_RI.T[inputs] if self._is_embedding else linear(inputs.to(a_RI.dtype), a_RI)
        bias = None if self._bias_AO is None else self._bias_AO[member]
        return torch.add(output, linear(inner, b_OR, bias), alpha=self._scaling[member]).to(output.dtype)

    def _of_groups(self, inputs_GNI: torch.Tensor, groups: Groups) -> torch.Tensor:
        """What the adapters add to their groups' inputs, of shape [G, N, O]; factors are copied only where adapters of
        the stack are left out."""
        chosen = slice(None) if len(groups.members) == len(self.names) else groups.members
        if self._is_embedding:
            inner_GNR = self._a_ARI.mT[groups.members[:, None], inputs_GNI]
        else:
            inner_GNR = inputs_GNI.to(self._a_ARI.dtype) @ self._a_ARI[chosen].mT
        if self._bias_AO is None:
            added_GNO = inner_GNR @ self._b_AOR[chosen].mT
        else:
            added_GNO = torch.baddbmm(self._bias_AO[chosen][:, None], inner_GNR, self._b_AOR[chosen].mT)
        return added_GNO * self._scaling_A11[chosen]


def _biases(layer: LoraLayer, names: tuple[str, ...]) -> torch.Tensor | None:
    """Those of `lora_bias`, zeros for adapters without; None where none has any."""
    biases = [layer.lora_B[name].bias for name in names]
    if all(bias is None for bias in biases):
        return None
    like = layer.lora_B[names[0]].weight
    return torch.stack([like.new_zeros(len(like)) if bias is None else bias.data for bias in biases])


def _scaling(layer: LoraLayer, name: str) -> float:
    """`lora_alpha / r`, or as the method has it; also by what embeddings are multiplied with, as those of Gemma are."""
    is_embedding = name in layer.lora_embedding_A
    return float(layer.scaling[name] * (getattr(layer.get_base_layer(), "embed_scale", 1.0) if is_embedding else 1.0))
