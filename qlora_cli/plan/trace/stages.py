"""The running part of the step, found by hooks on the model's layers and by the checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from qlora_cli.model.towers.auto_class import has_parts
from qlora_cli.plan.trace.live_memory import LiveMemory, Stage


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's layers in their order: the longest list of modules that is nested least deep in its decoder.

    >>> block = nn.Module()
    >>> block.experts = nn.ModuleList([nn.Identity()] * 8)
    >>> base = nn.Module()
    >>> base.layers = nn.ModuleList([block, block])
    >>> len(decoder_layers(base))
    2
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder = base.get_decoder() if isinstance(base, PreTrainedModel) and has_parts(base.config) else base
    lists = [(name, list(module)) for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)]
    depth = min((name.count(".") for name, _ in lists), default=0)
    return max((layers for name, layers in lists if name.count(".") == depth), key=len, default=[])


@contextmanager
def record_stages(memory: LiveMemory, model: PeftModel) -> Iterator[None]:
    """Tell `memory` when each layer's forward and backward begins, and when the loss does.

    The backward of a layer begins when the gradient of its output is there.
    """
    layers = decoder_layers(model)
    head = model.get_base_model().get_output_embeddings()
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(_begins(memory, index)).remove)
            stack.callback(layer.register_forward_hook(_ends(memory, index)).remove)
        if layers and head is not None:
            backbone = model.get_base_model().base_model
            stack.callback(backbone.register_forward_hook(lambda *_: memory.enter(Stage.LOSS)).remove)
        yield


def _begins(memory: LiveMemory, index: int) -> Any:
    return lambda *_: memory.enter(Stage.FORWARD, index)


def _ends(memory: LiveMemory, index: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        memory.enter(Stage.FORWARD)
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.requires_grad:
            hidden.register_hook(lambda _: memory.enter(Stage.BACKWARD, index))

    return hook


def checkpoint_contexts(memory: LiveMemory, context: Callable[[], AbstractContextManager[None]]) -> Any:
    """`context_fn` of `torch.utils.checkpoint`: recomputation is a phase of its own, inside `context`.

    It is called in the forward pass of each layer, so it knows which layer its recomputation will belong to.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _recomputation(memory, memory.phases[-1].layer, context)

    return contexts


@contextmanager
def _recomputation(
    memory: LiveMemory, layer: int | None, context: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    memory.enter(Stage.RECOMPUTE, layer)
    try:
        with context():
            yield
    finally:  # it stops by an exception as soon as all that backward needs is there
        memory.enter(Stage.BACKWARD, layer)
