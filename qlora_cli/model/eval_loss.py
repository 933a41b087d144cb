"""The loss of a model on given rows, each token counted once."""

# B = rows, L = sequence length, R = rows in one slice, V = vocabulary

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from qlora_cli.constants import IGNORE_INDEX

MAX_LOGITS = 2**26
"""Logits held together, in elements: 256 MiB in fp32. Large vocabularies would otherwise fill the memory."""


@dataclass(frozen=True)
class Score:
    """Loss of a model on the labelled tokens of a data set."""

    loss: float
    """Mean cross-entropy over all labelled tokens, in nats."""

    num_tokens: int
    """Labelled tokens."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is beyond a float.

        >>> round(Score(loss=0.693147, num_tokens=1).perplexity, 3)
        2.0
        """
        return math.exp(self.loss) if self.loss < 709 else math.inf


def score_rows(model: PreTrainedModel | PeftModel, batches: Iterable[Mapping[str, Any]]) -> Score:
    """The loss of `model` over all labelled tokens of all batches.

    Long and short rows weigh by their tokens, whatever the batches: the mean of batch means would not. Losses are
    computed in fp32 and summed in fp64. The model computes in eval mode and is then as it was.

    Args:
        model: a causal language model that takes `input_ids` and `position_ids`.
        batches: `input_ids`, `labels` and `position_ids` of shape (B, L), as the data collator makes them, without
            an attention mask: the positions separate the documents. A flattened batch (B = 1) may hold more.

    Raises:
        ValueError: if no token has a label.
    """
    total, num_tokens = summed_loss(model, batches)
    if num_tokens == 0:
        raise ValueError("no token of the batches has a label")
    return Score(loss=total / num_tokens, num_tokens=num_tokens)


def summed_loss(model: PreTrainedModel | PeftModel, batches: Iterable[Mapping[str, Any]]) -> tuple[float, int]:
    """The loss summed over all labelled tokens of all batches, and their number; for parts of a data set.

    The arguments are those of `score_rows`; there may be no batch.
    """
    vocab_size = model.config.get_text_config().vocab_size
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    num_tokens = 0
    try:
        with torch.no_grad():
            for batch in batches:
                for rows in _slices(batch, vocab_size):
                    losses_T = labelled_losses(model, rows)
                    total += losses_T.double().sum().cpu()
                    num_tokens += losses_T.numel()
    finally:
        model.train(was_training)
    return total.item(), num_tokens


def labelled_losses(model: PreTrainedModel | PeftModel, rows: Mapping[str, Any]) -> torch.Tensor:
    """Cross-entropy of each labelled token of a batch, in fp32, row after row, in one dimension."""
    device = next(model.parameters()).device
    inputs = {
        name: value.to(device) if torch.is_tensor(value) else value for name, value in rows.items() if name != "labels"
    }
    labels_RL = rows["labels"].to(device)[:, 1:]
    logits_RLV = model(**inputs, use_cache=False).logits
    logits_RLV = logits_RLV[:, -rows["labels"].shape[1] : -1]  # virtual tokens of a prompt method come first
    is_labelled_RL = labels_RL != IGNORE_INDEX
    return cross_entropy(logits_RLV[is_labelled_RL].float(), labels_RL[is_labelled_RL], reduction="none")


def _slices(batch: Mapping[str, Any], vocab_size: int) -> Iterator[Mapping[str, Any]]:
    """The batch in parts of whole rows whose logits stay within `MAX_LOGITS`."""
    num_rows, length = batch["input_ids"].shape
    if num_rows == 1:
        yield batch
        return
    rows_at_once = max(1, MAX_LOGITS // (length * vocab_size))
    for start in range(0, num_rows, rows_at_once):
        yield {name: value[start : start + rows_at_once] for name, value in batch.items()}


def row_losses(model: PreTrainedModel | PeftModel, batch: Mapping[str, Any]) -> list[tuple[float, int]]:
    """The loss of each row, summed over its labelled tokens in fp64, and their number.

    The arguments are those of `score_rows`; the batch is not flattened.
    """
    vocab_size = model.config.get_text_config().vocab_size
    was_training = model.training
    model.eval()
    found: list[tuple[float, int]] = []
    try:
        with torch.no_grad():
            for rows in _slices(batch, vocab_size):
                counts = (rows["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
                losses = labelled_losses(model, rows).double().cpu().split(counts)
                found += [(losses_T.sum().item(), count) for losses_T, count in zip(losses, counts, strict=True)]
    finally:
        model.train(was_training)
    return found
