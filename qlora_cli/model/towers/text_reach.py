"""The linear layers of a base that text goes through; those of a vision tower are none of them.

Nothing is guessed from names. A base that is made of several models is built without weights and given a row of text
without numbers; each linear layer notes that it was called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel

from qlora_cli.model.linear_layers import is_linear
from qlora_cli.model.towers.auto_class import AutoClass, has_parts
from qlora_cli.model.towers.skeleton import bare_skeleton

ROW_LENGTH = 8
CODE_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of a base's code on tensors that hold no values."""


@dataclass(frozen=True)
class TextReach:
    """Linear layers by name."""

    reached: frozenset[str]
    unreached: frozenset[str] = frozenset()

    modules: frozenset[str] = frozenset()
    """All modules of the base, linear or not."""


def text_reach(auto: AutoClass, config: PreTrainedConfig) -> TextReach | None:
    """The linear layers of the model that `auto` makes of `config`; None for one that is a language model and no more.

    Where the code of a base does not run without numbers, what its `get_decoder` holds counts as reached, and its head.
    """
    if not has_parts(config):
        return None
    return _cached_reach(auto, _HashableConfig(config))


def untouched_pattern(unreached: Collection[str], reached: Collection[str]) -> str | None:
    """A regular expression that matches all that is in `unreached`, with whole branches where nothing else is in them.

    Names may have any prefix: a class that holds the base as a part of it has the same layers further down.

    >>> untouched_pattern({"tower.layers.0.q_proj", "tower.layers.1.q_proj"}, {"text.layers.0.q_proj"})
    '(.*\\\\.)?(tower)(\\\\..*)?'
    >>> untouched_pattern(set(), {"text.layers.0.q_proj"}) is None
    True
    """
    roots = [re.escape(root) for root in untouched_roots(unreached, reached)]
    return rf"(.*\.)?({'|'.join(roots)})(\..*)?" if roots else None


def untouched_roots(unreached: Collection[str], reached: Collection[str]) -> list[str]:
    """The topmost modules that hold something of `unreached` and nothing of `reached`.

    >>> untouched_roots({"tower.layers.0.q_proj", "tower.layers.1.q_proj"}, {"text.layers.0.q_proj"})
    ['tower']
    """
    kept = {branch for name in reached for branch in _branches(name)}
    return sorted({next(branch for branch in _branches(name) if branch not in kept) for name in unreached})


def _branches(name: str) -> list[str]:
    """The name's beginnings, shortest first.

    >>> _branches("a.b.c")
    ['a', 'a.b', 'a.b.c']
    """
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


class _HashableConfig:
    """A configuration that equals another with the same settings."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        self.settings = json.dumps(config.to_dict(), sort_keys=True, default=str)

    def __hash__(self) -> int:
        return hash(self.settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _HashableConfig) and (type(self.config), self.settings) == (
            type(other.config),
            other.settings,
        )


@lru_cache(maxsize=8)
def _cached_reach(auto: AutoClass, hashable: _HashableConfig) -> TextReach:
    for forward in (_run_on_meta, _run_on_fake_tensors):
        try:
            model = bare_skeleton(auto, hashable.config)
            called = forward(model)
        except CODE_FAULTS:
            continue
        linear = frozenset(name for name, module in model.named_modules() if is_linear(module))
        return TextReach(linear & called, linear - called, _names(model))
    return _reach_by_structure(bare_skeleton(auto, hashable.config))


def _run_on_meta(model: PreTrainedModel) -> set[str]:
    """Names of the modules that a row of text calls; the mask keeps the base from looking for packed rows in it."""
    row = torch.zeros(1, ROW_LENGTH, dtype=torch.long, device="meta")
    return _called(model, input_ids=row, attention_mask=torch.ones_like(row))


def _run_on_fake_tensors(model: PreTrainedModel) -> set[str]:
    """The same for bases that look into the mask, but not while they are traced."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(tensor.shape, dtype=tensor.dtype))
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return _called(model, input_ids=torch.zeros(1, ROW_LENGTH, dtype=torch.long))


def _called(model: PreTrainedModel, **row: Any) -> set[str]:
    called: set[str] = set()

    def note(name: str) -> Any:
        return lambda *_: called.add(name)

    for name, module in model.named_modules():
        if is_linear(module):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        model(**row, use_cache=False)
    return called


def _reach_by_structure(model: PreTrainedModel) -> TextReach:
    text = {*model.get_decoder().modules(), model.get_output_embeddings()}
    linear = {name: module for name, module in model.named_modules() if is_linear(module)}
    reached = frozenset(name for name, module in linear.items() if module in text)
    return TextReach(reached, frozenset(linear) - reached, _names(model))


def _names(model: PreTrainedModel) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_modules())
