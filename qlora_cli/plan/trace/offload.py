"""Activations in host memory, as trl's `OffloadActivations` moves them (trl/models/activation_offloading.py).

What autograd saves in the forward pass is copied to the host, the latest few of it staying until their copies are done.
What is saved again while it is on its way stays until the backward pass, as an input of several adapters does. In the
backward pass each comes back as a new tensor when it is asked for. Parameters and small tensors stay. Under
gradient checkpointing what is saved are the inputs of the layers.

Here nothing is copied: a trace needs to know only which tensors are on the device, and fake ones hold no values.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

LEAST_BYTES = 1024
"""Smaller tensors stay on the device."""

NUM_STASHED = 5
"""Tensors that stay until their copies to the host are done."""


@dataclass(frozen=True)
class OnHost:
    """A tensor that is on the host; what its successor on the device looks like."""

    number: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def _place(tensor: torch.Tensor) -> tuple[int, int, torch.dtype]:
    """Identity of a tensor: its storage, where it begins in it, and its dtype."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.dtype


class FakeOffload(saved_tensors_hooks):
    """Inside it, what autograd saves leaves the device, and comes back in the backward pass."""

    def __init__(self) -> None:
        self._number = 0
        self._stash: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._brought_back: list[torch.Tensor] = []
        self._node: Any = None
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | OnHost:
        is_small = tensor.numel() * tensor.element_size() < LEAST_BYTES
        is_on_its_way = _place(tensor) in map(_place, self._stash.values())
        if is_small or isinstance(tensor, torch.nn.Parameter) or is_on_its_way:
            return tensor
        self._number += 1
        self._stash[self._number] = tensor
        while len(self._stash) > NUM_STASHED:
            self._stash.popitem(last=False)
        return OnHost(self._number, tensor.size(), tensor.stride(), tensor.dtype)

    def _unpack(self, saved: torch.Tensor | OnHost) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        node = torch._C._current_autograd_node()
        if node is not self._node:  # what the node before had brought back is done with
            self._node = node
            self._brought_back.clear()
        tensor = self._stash.pop(saved.number, None)
        if tensor is None:
            tensor = torch.empty_strided(saved.size, saved.stride, dtype=saved.dtype)
        self._stash.clear()
        self._brought_back.append(tensor)
        return tensor

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._stash.clear()
        self._brought_back.clear()
