"""LoRA and QA-LoRA on integer layers, as PEFT takes layers that it does not know.

QA-LoRA (Xu et al. 2023, arXiv:2309.14717, section 3.3): the adapter gets the mean of its inputs over each group, so its
update is the same for all weights of a group and goes into the group's offset. PEFT has the method for GPTQ layers.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora.layer import Linear, LoraVariant
from peft.tuners.lora.variants import QALoraLinearVariant

from qlora_cli.model.integer.linear import IntegerLinear


class _GroupedVariant(QALoraLinearVariant):
    """PEFT's, for inputs that do not lie in one piece as well."""

    @staticmethod
    def forward(
        module: Linear, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        x = x.contiguous()
        added: torch.Tensor = QALoraLinearVariant.forward(module, active_adapter, x, result, **kwargs)
        return added


class IntegerLoraLinear(Linear):
    """An adapter on an `IntegerLinear`. `qlora merge` folds it; PEFT cannot, since there is no plain weight."""

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        """QA-LoRA where it is asked for, else what PEFT makes of any linear layer.

        Raises:
            ValueError: for DoRA, which would take the codes for weights.
        """
        if config.use_dora:
            raise ValueError("DoRA needs the norms of plain weights, and an integer layer has none")
        return _GroupedVariant() if config.use_qalora else super().resolve_lora_variant(config=config, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("an adapter on an integer layer is merged by `qlora merge`")


def with_integer_layers(config: PeftConfig) -> PeftConfig:
    """The configuration, if it is of LoRA, told how integer layers get their adapters. It is not saved with it."""
    if isinstance(config, LoraConfig):
        config._register_custom_module({IntegerLinear: IntegerLoraLinear})
    return config
