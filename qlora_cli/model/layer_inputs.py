"""What layers get as inputs when rows of a run go through a model, and the second moments H = sum of x x^T of these.

Shape letters: I = input features, T = tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from qlora_cli.errors import NumericError
from qlora_cli.progress import Phase

DAMPING = 0.01
"""Added to H, as a share of its mean diagonal (GPTQ, arXiv:2210.17323, section 3.3, step 3): directions in which no
input was seen still count. For adapters of CLoQ 0.1 and 0.0001 gave the same KL within 0.2%."""

Batch = Mapping[str, Any]
"""Rows as the collator makes them, without padding."""

Groups = list[list[str]]
"""Names of layers that get one and the same input, such as q, k and v, in one list each."""


def layers_by_input(model: PreTrainedModel, layers: Mapping[str, nn.Module], batch: Batch) -> Groups:
    """The layers that a batch reaches, in the order of computing, those together that get the same tensor."""
    groups: Groups = []
    seen: set[str] = set()
    last: list[torch.Tensor] = []

    def note(name: str, _layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if name not in seen and groups and inputs[0] is last[0]:
            groups[-1].append(name)
        elif name not in seen:
            groups.append([name])
        seen.add(name)
        last[:] = inputs[:1]

    run_rows(model, [batch], [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()])
    return groups


def second_moments(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], batches: Iterable[Batch], until: nn.Module | None = None
) -> dict[str, torch.Tensor]:
    """The sum of x x^T [I, I] over all tokens for each layer, in float32 on the model's device.

    Args:
        model: all of it.
        layers: some of its layers, by name.
        batches: rows.
        until: the module after which the rest of a forward pass is not needed.
    """
    sizes: dict[str, Any] = {name: layer.in_features for name, layer in layers.items()}
    moments = {name: torch.zeros(size, size, device=model.device) for name, size in sizes.items()}

    def add(name: str, _layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x_TI = inputs[0].detach().flatten(end_dim=-2).float()
        moments[name].addmm_(x_TI.T, x_TI)

    hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    if until is not None:
        hooks.append(until.register_forward_hook(_stop))
    run_rows(model, batches, hooks)
    return moments


class _EndOfPass(Exception):  # noqa: N818 - not an error
    """Ends a forward pass of which the rest is not needed."""


def _stop(*_: Any) -> NoReturn:
    raise _EndOfPass


def run_rows(model: PreTrainedModel, batches: Iterable[Batch], hooks: Sequence[RemovableHandle]) -> None:
    """Forward passes of the model without its output head, for the hooks, which are then removed."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                given = {name: value for name, value in batch.items() if name != "labels"}
                moved = {name: v.to(model.device) if torch.is_tensor(v) else v for name, v in given.items()}
                with suppress(_EndOfPass):
                    model.base_model(**moved, use_cache=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def counted(batches: Sequence[Batch], phase: Phase) -> Iterator[Batch]:
    """The batches, each a step of the phase."""
    for batch in batches:
        yield batch
        phase.advance()


def damped(moment_II: torch.Tensor, name: str, key: str, hint: str) -> torch.Tensor | None:
    """H + damping, up to a factor, in place of `moment_II`; None of a layer that no token reached, such as an expert.

    Args:
        moment_II: H.
        name: of the layer.
        key: the setting of the recipe that needs it, and its value, in words.
        hint: what can be set instead.

    Raises:
        NumericError: if the layer got inputs that are not finite.
    """
    scale = moment_II.diagonal().mean()
    if not torch.isfinite(scale):
        raise NumericError(f"{key}, but layer '{name}' gets inputs that are not finite", hint=hint)
    if scale == 0:
        return None
    moment_II.div_(scale).diagonal().add_(DAMPING)
    return moment_II
