"""Activations in host memory, as trl's `OffloadActivations` moves them (trl/models/activation_offloading.py).

What autograd saves in the forward pass is copied to the host, the latest few of it staying until their copies are done;
in the backward pass each comes back as a new tensor when it is asked for. Parameters and small tensors stay. Under
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


class FakeOffload(saved_tensors_hooks):
    """What autograd saves while it is entered leaves the device, and comes back in the backward pass."""

    def __init__(self) -> None:
        self._number = 0
        self._stash: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._brought_back: list[torch.Tensor] = []
        self._node: Any = None
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | OnHost:
        storages = {stashed.untyped_storage()._cdata for stashed in self._stash.values()}
        is_small = tensor.numel() * tensor.element_size() < LEAST_BYTES
        if is_small or isinstance(tensor, torch.nn.Parameter) or tensor.untyped_storage()._cdata in storages:
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
