"""Proof, on the loaded model, that no token sees what it must not: a later token, or another document.

Int8 layers run without outlier columns meanwhile: those are picked over the whole batch, so that on trained weights the
rounding of one token's logits depends on the others (0.2 of a logit was seen), with attention being as it should.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel

from qlora_cli.data.collator import Collator
from qlora_cli.errors import NumericError, RecipeError
from qlora_cli.model.dequantize import no_outlier_columns
from qlora_cli.train.step.finite import first_nonfinite, weight_values

PROBE_LENGTH = 16
TOLERANCE = 1e-3
"""Share of the largest logit that a change may reach; kernels that are not deterministic stay far below it."""

ROUNDINGS = 8
"""In 16 bit the tolerance is 8 rounding steps of the largest logit, if that is more: other tokens reach other experts,
so matrix shapes differ and round differently."""


@dataclass(frozen=True)
class PackedIsolation:
    """Result of the proof."""

    max_change: float
    """Largest absolute change of a logit of the second document when the first one is replaced."""


def check_causal_attention(model: PeftModel, collator: Collator) -> None:
    """Replace the second half of a document and look whether a logit of the first half moves.

    A base that was made to fill in words, such as BERT, sees what follows; its training loss would fall to nothing, and
    it would have learned to copy. Costs two forward passes over 32 tokens.

    Raises:
        NumericError: if logits are not finite.
        RecipeError: if logits of the first half move.
    """
    first = _document(model, step=7, shift=3)
    one, other = (_logits(model, collator, [first + _document(model, step=11, shift=shift)]) for shift in (1, 5))
    change, limit = _change(model, one[:PROBE_LENGTH], other[:PROBE_LENGTH])
    if change > limit:
        raise RecipeError(
            f"{type(model.get_base_model()).__name__} is not a causal language model: replacing the second half of "
            f"a row moved a logit of the first by {change:.3g}",
            hint="choose a base that was trained to continue text, such as Llama, Qwen, Mistral or GPT-2",
        )


def check_packed_isolation(model: PeftModel, collator: Collator) -> PackedIsolation:
    """Replace the first of two packed documents and look whether a logit of the second one moves.

    Costs two forward passes over 32 tokens. The documents are made of arbitrary token ids.

    Raises:
        NumericError: if they move: the attention implementation lets documents see each other.
    """
    change, limit = _packed_change(model, collator)
    if change > limit:
        better = _isolating_attention(model, collator)
        raise NumericError(
            f"packed documents see each other: replacing one moved a logit of the next by {change:.3g}",
            hint="--set data.packing=false" + (f", or --set model.attn_implementation={better}" if better else ""),
        )
    return PackedIsolation(change)


def _packed_change(model: PeftModel, collator: Collator) -> tuple[float, float]:
    """The largest change of a logit of the second of two packed documents, and how large it may be."""
    second = _document(model, step=7, shift=3)
    one, other = (_logits(model, collator, [_document(model, step=11, shift=shift), second]) for shift in (1, 5))
    return _change(model, one[PROBE_LENGTH:], other[PROBE_LENGTH:])


def _isolating_attention(model: PeftModel, collator: Collator) -> str | None:
    """Another attention of this base under which packed documents do not see each other; None where it has none."""
    base = model.get_base_model()
    given = base.config._attn_implementation
    for other in ("sdpa", "eager"):
        try:
            base.set_attn_implementation(other)
            change, limit = _packed_change(model, collator)
        except (ValueError, ImportError):  # the base has no such attention
            continue
        finally:
            base.set_attn_implementation(given)
        if other != given and change <= limit:
            return other
    return None


def _document(model: PeftModel, *, step: int, shift: int) -> list[int]:
    vocabulary = model.get_input_embeddings().num_embeddings
    return [(step * index + shift) % vocabulary for index in range(PROBE_LENGTH)]


def _logits(model: PeftModel, collator: Collator, documents: list[list[int]]) -> torch.Tensor:
    """Logits of a row of documents, (2 x PROBE_LENGTH, vocabulary) in fp32.

    Raises:
        NumericError: if one is not finite.
    """
    tokens = [token for document in documents for token in document]
    row = {"input_ids": tokens, "labels": tokens, "seq_lengths": [len(document) for document in documents]}
    inputs = {
        name: value.to(model.device) if torch.is_tensor(value) else value
        for name, value in collator([row]).items()
        if name != "labels"
    }
    was_training = model.training
    model.eval()
    with torch.no_grad(), no_outlier_columns(model):
        logits = model(**inputs, use_cache=False).logits[0, : 2 * PROBE_LENGTH].float()
    model.train(was_training)
    if not logits.isfinite().all():
        broken = first_nonfinite(weight_values(model))
        where = f": '{broken}' holds values that are not finite" if broken else ""
        raise NumericError(
            f"the base model's logits are not finite before the first step{where}",
            hint="download the base model again"
            if broken
            else "--set model.dtype=bfloat16, or float32: float16 overflows where they do not",
        )
    return logits


def _change(model: PeftModel, one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """The largest change of a logit, and how large it may be."""
    rounding = torch.finfo(model.get_input_embeddings().weight.dtype).eps / 2
    limit = max(TOLERANCE, ROUNDINGS * rounding) * one.abs().max().item()
    return (one - other).abs().max().item(), limit
