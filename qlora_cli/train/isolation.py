"""Proof, on the model at hand, that packed documents do not see each other."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from peft import PeftModel

from qlora_cli.data.collator import Collator
from qlora_cli.data.packing import PackedRow
from qlora_cli.errors import NumericError, RecipeError
from qlora_cli.train.numbers import first_broken, weight_values

PROBE_LENGTH = 16
TOLERANCE = 1e-3
"""Share of the largest logit that a change may reach; kernels that are not deterministic stay far below it."""


@dataclass(frozen=True)
class Isolation:
    """What the proof measured."""

    max_change: float
    """Largest absolute change of a logit of the second document when the first one is replaced."""


def check_takes_positions(model: PeftModel) -> None:
    """Refuse a model that cannot be told where a document starts.

    Raises:
        RecipeError: if its forward pass takes no `position_ids`.
    """
    base = model.get_base_model()
    if "position_ids" not in inspect.signature(type(base).forward).parameters:
        raise RecipeError(
            f"{type(base).__name__} takes no position_ids, which rows of this project are made of",
            hint="choose a base model with rotary or learned positions, such as Llama, Qwen, Mistral or GPT-2",
        )


def prove_isolation(model: PeftModel, collator: Collator) -> Isolation:
    """Replace the first of two packed documents and look whether a logit of the second one moves.

    Costs two forward passes over 32 tokens. The documents are made of arbitrary token ids.

    Raises:
        NumericError: if they move: the attention implementation lets documents see each other.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    second = [(7 * index + 3) % vocabulary for index in range(PROBE_LENGTH)]
    was_training = model.training
    model.eval()
    logits = []
    with torch.no_grad():
        for shift in (1, 5):
            first = [(11 * index + shift) % vocabulary for index in range(PROBE_LENGTH)]
            row = PackedRow(first + second, first + second, [PROBE_LENGTH, PROBE_LENGTH])
            batch = collator([{"input_ids": row.input_ids, "labels": row.labels, "seq_lengths": row.seq_lengths}])
            inputs = {
                name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()
            }
            inputs.pop("labels")
            logits.append(model(**inputs, use_cache=False).logits[0, PROBE_LENGTH : 2 * PROBE_LENGTH].float())
    model.train(was_training)
    if not torch.stack(logits).isfinite().all():
        broken = first_broken(weight_values(model))
        where = f": '{broken}' holds values that are not finite" if broken else ""
        raise NumericError(
            f"the base model's logits are not finite before the first step{where}",
            hint="get the base model anew"
            if broken
            else "--set model.dtype=bfloat16, or float32: float16 overflows where they do not",
        )
    max_change = (logits[0] - logits[1]).abs().max().item()
    if max_change > TOLERANCE * logits[0].abs().max().item():
        raise NumericError(
            f"packed documents see each other: replacing one moved a logit of the next by {max_change:.3g}",
            hint="--set data.packing=false, or --set model.attn_implementation=sdpa",
        )
    return Isolation(max_change)
