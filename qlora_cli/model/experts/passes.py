"""One pass through a layer's experts: each weight is dequantized once, and need not be kept for backward.

Autograd keeps what a product needs for its backward pass, here the dequantized weight, until that comes. Under gradient
checkpointing this is one layer at a time. Without it all experts of the model would be there in 16 bit together, so the
packed bytes are kept in their place and dequantized again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class Given:
    """A weight that a reader gave in this pass, which the pass keeps alive."""

    storage: int
    """Address of the storage's description, by which its views are known."""

    reader: Any
    packed: torch.Tensor
    update: Any

    def again(self) -> torch.Tensor:
        """The same values once more."""
        weight: torch.Tensor = self.reader.read(self.packed, self.update)
        return weight


@dataclass(frozen=True)
class _View:
    """A whole weight as an operator saved it, without the weight."""

    given: Given
    size: torch.Size
    stride: tuple[int, ...]


class ExpertsPass:
    """Hooks of one module of experts.

    A recomputation stops by an exception as soon as all is there that backward needs, so the end is also told then.
    """

    def __init__(self, module: nn.Module) -> None:
        self.keeps_packed = False
        self.readers: dict[str, Any] = {}
        """By the names of the weights that they read; `given` of each is what it gave last."""
        self._open: list[AbstractContextManager[Any]] = []
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end, always_call=True)

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._forget()
        stack = ExitStack()
        stack.enter_context(parametrize.cached())
        if self.keeps_packed and torch.is_grad_enabled():
            stack.enter_context(saved_tensors_hooks(self._save, _restore))
        self._open.append(stack)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._open:
            self._open.pop().__exit__(None, None, None)
        self._forget()

    def _forget(self) -> None:
        for reader in self.readers.values():
            reader.given = None

    def _save(self, tensor: torch.Tensor) -> torch.Tensor | _View:
        """Whole weights and their transposes; of a slice, as of one expert's, the tensor is kept."""
        storage = tensor.untyped_storage()
        for reader in self.readers.values():
            given = reader.given
            if given and given.storage == storage._cdata and tensor.nbytes == storage.nbytes():
                return _View(given, tensor.size(), tensor.stride())
        return tensor


def _restore(saved: torch.Tensor | _View) -> torch.Tensor:
    if isinstance(saved, _View):
        return saved.given.again().as_strided(saved.size, saved.stride)
    return saved


def pass_of(module: nn.Module) -> ExpertsPass:
    """The hooks of a module of experts, made when they are first asked for."""
    if "experts_pass" not in vars(module):
        vars(module)["experts_pass"] = ExpertsPass(module)
    found: ExpertsPass = vars(module)["experts_pass"]
    return found


def keep_experts_packed(model: nn.Module) -> None:
    """Have the forward passes to come keep no dequantized weight for backward.

    Not for layers under gradient checkpointing, or whose activations are moved to the host: both have hooks of their
    own on what is saved, which these would go before.
    """
    for module in model.modules():
        if "experts_pass" in vars(module):
            pass_of(module).keeps_packed = True
