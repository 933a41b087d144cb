"""Logits of the base that an adapter is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qlora_cli.deploy.verify import record_logits
from qlora_cli.model.base import load_base
from qlora_cli.model.tuned import Tuned


def base_logits(tuned: Tuned, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The base's logits on `rows`, as `record_logits` returns them.

    That is the model in memory with its adapter switched off. After PiSSA and its like these weights are a residual,
    which is nobody's base: the base itself is then loaded beside them.

    Args:
        tuned: with an adapter.
        rows: token ids.
    """
    if tuned.source.is_base_apart:
        source = tuned.source
        return record_logits(load_base(source.model, source.quantization, source=source.integers_folder).eval(), rows)
    with tuned.model.disable_adapter():
        return record_logits(tuned.model, rows)
