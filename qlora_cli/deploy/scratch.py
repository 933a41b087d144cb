"""Memory that a thread works in, chunk after chunk."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch


class Scratch(threading.local):
    """Tensors that are used again: pages that are taken anew for each chunk cost as much as the arithmetic on them.

    Each thread that uses it has tensors of its own.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor on the CPU with any numbers in it, until the next one is taken for the same use.

        >>> scratch = Scratch()
        >>> first, second = scratch.take("a", (2, 3), torch.float32), scratch.take("a", (3,), torch.bfloat16)
        >>> first.shape, second.shape, first.data_ptr() == second.data_ptr()
        (torch.Size([2, 3]), torch.Size([3]), True)
        """
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        buffer = self._buffers.get(use)
        if buffer is None or len(buffer) < num_bytes:
            buffer = self._buffers[use] = torch.empty(num_bytes, dtype=torch.uint8)
        return buffer[:num_bytes].view(dtype).view(torch.Size(shape))
