"""One base with its adapters, run for rows of any of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from qlora_cli.model.abilities import Abilities, layers_of
from qlora_cli.model.stacked_lora import StackedLora


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
        mixed = {name for name in abilities.mixed if name is not None}
        self._stacked = StackedLora(layers_of(model, mixed), mixed)
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
        return "mixed" if adapter in self.abilities.mixed else f"alone {adapter or ''}"

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
        with self._switched([self._adapters[name] for name in names]):
            output = self._model(**inputs)
        return Outcome(output.logits[:, -1].to(torch.float32, copy=True), getattr(output, "past_key_values", None))

    def close(self) -> None:
        """Leave the model with PEFT's layers switched on, as it came: PEFT cannot do so when the interpreter ends."""
        self._switches.close()
        self._is_off = False

    def _switched(self, adapters: list[str | None]) -> AbstractContextManager[None]:
        """Within it each row has its adapter: as stacks, on top of the base, or as PEFT's active one."""
        if self.abilities.mixed.issuperset(adapters):
            self._switch_off()
            return self._stacked.computing(adapters)
        [adapter] = {*adapters}
        if adapter is None:
            self._switch_off()
        else:
            self._switch_on(adapter)
        return nullcontext()

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
