"""One base with its adapters, run for rows of any of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from qlora_cli.model.abilities import Abilities, layers_of

PEFT_BASE = "__base__"
"""PEFT's word for a row without an adapter in a mixed batch."""


@dataclass(frozen=True)
class Outcome:
    """What one pass through the model gave."""

    logits: torch.Tensor
    """Behind the last token of each row: float32, of shape [rows, vocabulary]."""

    cache: Any
    """The model's cache with the tokens in it; None where it has none."""


class ServedModel:
    """The model of an engine. For one thread at a time: it switches adapters on and off."""

    def __init__(
        self, model: PeftModel | PreTrainedModel, adapters: dict[str, str | None], abilities: Abilities
    ) -> None:
        """
        Args:
            model: the base with its adapters, in eval mode.
            adapters: name of a request -> name of the adapter in PEFT, None for the base.
            abilities: what can be computed together.
        """
        self.abilities = abilities
        self.device: torch.device = model.device
        self._model = model
        self._adapters = adapters
        self._switches = ExitStack()
        self._row_adapters: list[str] | None = None
        """Adapter of each row while a mixed batch is computed."""

        for layer in layers_of(model, abilities.mixed):
            layer.register_forward_pre_hook(self._tell_adapters, with_kwargs=True)
        self._active: str | None = _active(model)
        self._is_off = False
        taken = inspect.signature(_inner(model).forward).parameters
        self._takes_positions = "position_ids" in taken
        self._takes_logits_to_keep = "logits_to_keep" in taken

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may have, in the order given."""
        return tuple(self._adapters)

    def lane_of(self, name: str) -> str:
        """Rows of one lane stand in one batch; each adapter that cannot be mixed has its own."""
        adapter = self._adapters[name]
        return "mixed" if adapter in self.abilities.mixed else f"alone {adapter or PEFT_BASE}"

    def keeps_cache(self, name: str) -> bool:
        """Whether what was computed for a row can be kept for its next token."""
        return self._adapters[name] not in self.abilities.recomputed

    def is_joinable(self, name: str) -> bool:
        """Whether rows of `name` can be computed in one batch at all."""
        return self.abilities.is_joinable and self.keeps_cache(name)

    @torch.no_grad()
    def run(
        self,
        names: Sequence[str],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        cache: DynamicCache | None,
        *,
        use_cache: bool = True,
    ) -> Outcome:
        """One pass.

        Args:
            names: of the adapter of each row.
            input_ids: tokens that are not in the cache yet, of shape [rows, new tokens]; the last one of a row is no
                padding.
            attention_mask: 1 for tokens and 0 for padding on their left, of shape [rows, tokens in all].
            cache: what was computed before; the model makes its own where it is None.
            use_cache: False computes everything anew and keeps nothing.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache}
        if cache is not None:
            inputs["past_key_values"] = cache
        if self._takes_positions and use_cache:
            positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -input_ids.shape[1] :]
        if self._takes_logits_to_keep and use_cache:
            inputs["logits_to_keep"] = 1
        self._row_adapters = self._switched([self._adapters[name] for name in names])
        try:
            output = self._model(**inputs)
        finally:
            self._row_adapters = None
        return Outcome(output.logits[:, -1].to(torch.float32, copy=True), getattr(output, "past_key_values", None))

    def _tell_adapters(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What `PeftModel.forward(adapter_names=...)` does with hooks for each call; its own stay after one that fails,
        and every later call, whoever's it is, is then given the adapters of that one."""
        return None if self._row_adapters is None else (args, kwargs | {"adapter_names": self._row_adapters})

    def _switched(self, adapters: list[str | None]) -> list[str] | None:
        """Switch on what the rows need.

        Returns:
            The adapter of each row in PEFT's words, where there are several.
        """
        wanted = set(adapters)
        if wanted == {None}:
            self._switch_off()
            return None
        # What is not told about rows, such as whole modules of other adapters, goes by the active adapter.
        self._switch_on(next(adapter for adapter in adapters if adapter is not None))
        return None if len(wanted) == 1 else [adapter or PEFT_BASE for adapter in adapters]

    def _switch_off(self) -> None:
        if not self._is_off and isinstance(self._model, PeftModel):
            self._switches.enter_context(self._model.disable_adapter())
            self._is_off = True

    def _switch_on(self, adapter: str) -> None:
        if self._is_off:
            self._switches.close()
            self._is_off = False
        if self._active != adapter:
            assert isinstance(self._model, PeftModel)
            self._model.set_adapter(adapter, inference_mode=True)
            self._active = adapter


def _active(model: PeftModel | PreTrainedModel) -> str | None:
    return str(model.active_adapter) if isinstance(model, PeftModel) else None


def _inner(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model
