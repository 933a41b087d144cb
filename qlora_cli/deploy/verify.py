"""Is the merged model the one that was trained? The same prompts through both, and the figures.

Shape letters: L = sequence length (the last positions of a row), V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from qlora_cli.errors import NumericError
from qlora_cli.progress import progress

MAX_KL_SAME_NUMBERS = 1e-6
"""Bound on the mean KL where both models compute in float32 on the same weights.

Measured: a 6-layer, 5M-parameter Llama with trained weights, r=16 on all linear layers, 60 steps, 489 positions,
where the adapter itself moves the model by 0.53 nats: NF4 3e-10 (max logit difference 2e-5, top-1 100%).
"""

MAX_KL_ROUNDED = 5e-3
"""Bound where one of the models has bfloat16 weights or computes in 16 bit, or rounds its activations to int8.

Measured on the model above: bfloat16 merge of a float32 run 1.1e-4 (max logit difference 0.16, top-1 98.8%), of a
bfloat16 run 1.8e-4; int8, whose forward pass rounds activations too, 5.5e-4. A merge onto other weights than training
saw is above it: 1.4e-2 for the original ones, 2.44 for weights that were read in the wrong layout.
"""

MAX_KL_ORIGINAL = 0.5
"""Bound for a merge onto the original weights, where the figure shows the price: the quantization error that the
adapter was trained on is gone. Measured on the model above: NF4 1.4e-2 (top-1 93%), fp4 2.7e-2, int8 6e-4."""

NUM_LAST_POSITIONS = 64
"""Positions of each row that are compared: 8 rows of a 128k vocabulary take 262 MB in float32."""


@dataclass(frozen=True)
class Agreement:
    """Distance of one model from another on the same tokens."""

    num_positions: int
    max_logit_difference: float
    mean_kl: float
    """KL(reference || other) in nats per token, averaged over the positions."""

    top1_agreement: float
    """Share of positions at which both find the same token most likely."""

    def figures(self) -> dict[str, str]:
        """Label and value, for people."""
        return {
            "max logit difference": f"{self.max_logit_difference:.3g}",
            "mean KL": f"{self.mean_kl:.3g} nats a token over {self.num_positions} positions",
            "top-1 agreement": f"{self.top1_agreement:.2%}",
        }


@torch.no_grad()
def record_logits(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, together: bool = False
) -> list[torch.Tensor]:
    """The model's logits at the last positions of each row: float32 tensors [L, V] on the CPU.

    Rows run one by one, so no padding and no other row can touch a figure.

    Args:
        model: a causal language model.
        rows: token ids.
        together: run them in one pass, shorter ones filled up on the right, where no token of theirs looks; for a model
            whose weights are read from the disk in each pass.
    """
    if together:
        return _recorded_together(model, rows)
    recorded = []
    with progress("computing logits", len(rows)) as phase:
        for row in rows:
            input_ids = torch.tensor([row], device=model.device)
            logits_LV = model(input_ids=input_ids, use_cache=False).logits[0, -NUM_LAST_POSITIONS:]
            recorded.append(logits_LV.float().cpu())
            phase.advance()
    return recorded


def _recorded_together(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    longest = max(len(row) for row in rows)
    input_ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=model.device)
    with progress("computing logits"):
        logits_RLV = model(input_ids=input_ids, use_cache=False).logits
    return [
        logits_LV[max(0, len(row) - NUM_LAST_POSITIONS) : len(row)].float().cpu()
        for row, logits_LV in zip(rows, logits_RLV, strict=True)
    ]


def compare(reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Agreement:
    """The distance of `other` from `reference`, both as `record_logits` returns them.

    >>> even, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> compare([even], [even])
    Agreement(num_positions=1, max_logit_difference=0.0, mean_kl=0.0, top1_agreement=1.0)
    >>> compare([even], [sure]).max_logit_difference
    2.0
    """
    largest, kl_sum, num_same, num_positions = 0.0, 0.0, 0, 0
    for reference_LV, other_LV in zip(reference, other, strict=True):
        log_p_LV, log_q_LV = reference_LV.log_softmax(-1), other_LV.log_softmax(-1)
        kl_sum += (log_p_LV.exp() * (log_p_LV - log_q_LV)).sum().item()
        largest = max(largest, (reference_LV - other_LV).abs().max().item())
        num_same += int((reference_LV.argmax(-1) == other_LV.argmax(-1)).sum())
        num_positions += len(reference_LV)
    # Rounding can leave a mean of -1e-10 where both are the same; max() would turn a NaN into 0.
    mean_kl = kl_sum / num_positions
    return Agreement(num_positions, largest, 0.0 if mean_kl < 0 else mean_kl, num_same / num_positions)


def refuse_disagreement(agreement: Agreement, max_kl: float) -> None:
    """Refuse a merged model that is not the trained one.

    Raises:
        NumericError: if the mean KL is above the bound, or not a number.
    """
    if not agreement.mean_kl <= max_kl:
        raise NumericError(
            f"the merged model is not the model that was trained: mean KL {agreement.mean_kl:.3g} nats per token is "
            f"above the bound {max_kl:.3g} (top-1 agreement {agreement.top1_agreement:.1%}); nothing was written",
            hint="try --dtype float32; if it fails too, run `qlora doctor` and report this",
        )
