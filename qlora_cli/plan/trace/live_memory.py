"""Counting the memory that a step holds, storage by storage, on real and on fake tensors alike.

`LiveMemory` is a dispatch mode: it sees every tensor that an operator returns, counts its storage once, and notices
when the storage dies. Views and in-place results cost nothing. It sees nothing of what a kernel allocates inside; such
workspaces come from rules (`plan/trace/cuda_kernels.py`), by operator.

Bytes are those of the storages, as `untyped_storage().nbytes()` gives them; what an allocator rounds them up to is
`plan/trace/allocator.py`'s matter.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import bitsandbytes as bnb  # noqa: F401  registers its operators
import torch
from torch.utils._python_dispatch import TorchDispatchMode


class MemoryKind(StrEnum):
    """Purpose of a storage; the lines of the budget, in its order."""

    BASE_QUANTIZED = "base weights, quantized"
    QUANTIZATION_CONSTANTS = "quantization constants"
    BASE_16BIT = "base weights, not quantized"
    ADAPTER = "adapter"
    GRADIENTS = "gradients"
    GRADIENT_SUMS = "sums of gradients"
    OPTIMIZER = "optimizer state"
    PAGED_OPTIMIZER = "optimizer state, paged"
    INPUTS = "inputs"
    ACTIVATIONS = "activations kept for backward"
    LOSS = "logits and loss"
    DEQUANTIZED = "dequantization workspace"
    KERNEL_WORKSPACE = "kernel workspace"
    TEMPORARY = "temporaries"


class Stage(StrEnum):
    """Parts of a training step, in the order they come."""

    SETUP = "setup"
    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    RECOMPUTE = "recomputation"
    OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class Phase:
    """A stretch of the step with a name."""

    stage: Stage
    layer: int | None
    start: int
    """Clock at which it begins."""

    def __str__(self) -> str:
        """
        >>> str(Phase(Stage.BACKWARD, 3, 0))
        'backward, layer 3'
        """
        return self.stage if self.layer is None else f"{self.stage}, layer {self.layer}"


@dataclass(slots=True)
class Block:
    """One storage's life."""

    num_bytes: int
    kind: MemoryKind | None
    """None until the trace has ended: whether a tensor was kept is known when it was."""

    phase: int
    """Number of the phase it was born in."""

    allocated_at: int
    """Clock at its birth; 0 for what is there before the step begins."""

    freed_at: int | None = None

    layer: int | None = None
    """The layer it belongs to, for what is there before the step begins."""


Workspace = Callable[[Sequence[Any]], Sequence[tuple[MemoryKind, int]]]
"""From an operator's arguments to the bytes its kernel holds while it runs and gives back at its end."""

_DEQUANTIZING = frozenset(
    {torch.ops.bitsandbytes.dequantize_4bit.default, torch.ops.bitsandbytes.dequantize_blockwise.default}
)

DEVICE_OF = torch.ops.prim.device.default
"""Asked of every fake tensor, again and again."""

_HANDED_ON = frozenset({torch.ops.aten.add.Tensor, torch.ops.aten._to_copy.default})
"""Their results from a dequantized tensor are part of the dequantization: the offset, the cast."""


class LiveMemory(TorchDispatchMode):
    """Counts the storages that are alive.

    Args:
        workspaces: rules for what kernels allocate inside, by operator.
        stand_ins: functions that make an operator's result instead of it.
    """

    def __init__(
        self,
        workspaces: Mapping[Any, Workspace] | None = None,
        stand_ins: Mapping[Any, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__()
        self.clock = 0
        self.blocks: list[Block] = []
        self.phases: list[Phase] = [Phase(Stage.SETUP, None, 0)]
        self._workspaces = dict(workspaces or {})
        self._stand_ins = dict(stand_ins or {})
        self._living: dict[int, tuple[Block, weakref.ref[Any]]] = {}

    def enter(self, stage: Stage, layer: int | None = None) -> None:
        """Begin a phase; what is born from now on belongs to it."""
        self.phases.append(Phase(stage, layer, self.clock))

    def add(self, tensor: torch.Tensor, kind: MemoryKind | None = None) -> None:
        """Count a tensor's storage if it is not counted yet; a kind that is given sets the storage's."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._living.get(key)
        if known is not None:
            if kind is not None:
                known[0].kind = kind
            return
        num_bytes = storage.nbytes()
        if num_bytes == 0:
            return
        block = self._birth(num_bytes, kind)
        self._living[key] = (block, weakref.ref(storage, partial(self._death, key)))

    def settle(self, tensor: torch.Tensor, kind: MemoryKind, layer: int | None = None) -> None:
        """Count a tensor's storage as one that is there from the step's start, whenever it was made."""
        self.add(tensor, kind)
        known = self._living.get(tensor.untyped_storage()._cdata)
        if known is not None:
            known[0].phase = known[0].allocated_at = 0
            known[0].layer = layer

    def forget(self, tensor: torch.Tensor) -> None:
        """Take a storage out of the count that lies elsewhere on the device that the trace stands for."""
        block, _ = self._living.pop(tensor.untyped_storage()._cdata)
        self.blocks.remove(block)

    def kind_of(self, tensor: torch.Tensor) -> MemoryKind | None:
        """The kind of a counted tensor's storage, as far as it is known."""
        known = self._living.get(tensor.untyped_storage()._cdata)
        return None if known is None else known[0].kind

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE_OF:
            return args[0].device
        rule = self._workspaces.get(func)
        scratch = [] if rule is None else [self._birth(size, kind) for kind, size in rule(args) if size]
        result = self._stand_ins.get(func, func)(*args, **(kwargs or {}))
        kind = self._kind_of_result(func, args)
        for tensor in _tensors(result):
            self.add(tensor, kind)
        for block in scratch:
            self.clock += 1
            block.freed_at = self.clock
        return result

    def _kind_of_result(self, func: Any, args: tuple[Any, ...]) -> MemoryKind | None:
        if func in _DEQUANTIZING:
            return MemoryKind.DEQUANTIZED
        is_handed_on = func in _HANDED_ON and isinstance(args[0], torch.Tensor)  # not a number plus a tensor
        if is_handed_on and self.kind_of(args[0]) is MemoryKind.DEQUANTIZED:
            return MemoryKind.DEQUANTIZED
        return None

    def _birth(self, num_bytes: int, kind: MemoryKind | None) -> Block:
        self.clock += 1
        block = Block(num_bytes, kind, len(self.phases) - 1, self.clock)
        self.blocks.append(block)
        return block

    def _death(self, key: int, _: Any) -> None:
        known = self._living.pop(key, None)
        if known is not None:
            self.clock += 1
            known[0].freed_at = self.clock


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _tensors(item)
