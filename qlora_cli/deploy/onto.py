"""Onto which weights an adapter is merged: those that training saw, or the original ones. Both can be measured."""

from __future__ import annotations

from dataclasses import asdict

from peft import PeftModel

from qlora_cli.choices import Onto
from qlora_cli.data.collator import Collator
from qlora_cli.data.packing import unpacked
from qlora_cli.data.render.renderer import Renderer, TokenRow
from qlora_cli.deploy.verification_rows import own_rows
from qlora_cli.errors import ArgumentError
from qlora_cli.model.adapter import load_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.device import dtype_name
from qlora_cli.model.eval_loss import score_rows
from qlora_cli.model.tuned import TunedSource

NUM_ROWS = 64
"""Rows that the two are measured on."""


def held_out_losses(tuned: PeftModel, source: TunedSource, renderer: Renderer) -> dict[Onto, float]:
    """Loss in nats a token on the run's held-out rows (its training rows where none are held out): merged onto each.

    The tuned model computes on the weights that training saw. For the other figure the original base is loaded beside
    it, in the same dtype, with the same adapter.

    Raises:
        ArgumentError: if there are no rows to measure on.
    """
    rows = own_rows(source.recipe, renderer, NUM_ROWS)
    if not rows:
        raise ArgumentError(
            "--onto auto measures on the run's held-out rows, and this adapter brings no data",
            hint="say which: --onto dequantized, the weights that training saw, or --onto original",
        )
    losses: dict[Onto, float] = {"dequantized": _loss(tuned, rows)}
    losses["original"] = _loss(_on_original(tuned, source), rows)
    return losses


def better(losses: dict[Onto, float]) -> Onto:
    """The one with the lower loss.

    >>> better({"dequantized": 1.5, "original": 1.25})
    'original'
    """
    return min(losses, key=lambda onto: losses[onto])


def _loss(model: PeftModel, rows: list[TokenRow]) -> float:
    collate = Collator(pad_token_id=0)  # rows go one by one, so nothing is padded
    return score_rows(model, (collate([asdict(row)]) for row in unpacked(rows))).loss


def _on_original(tuned: PeftModel, source: TunedSource) -> PeftModel:
    assert source.adapter is not None
    model = source.model.model_copy(update={"dtype": dtype_name(tuned.dtype)})
    return load_adapter(load_base(model, None, source=source.base_source, device=tuned.device), source.adapter)
