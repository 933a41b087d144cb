"""The loss as trl computes it, in the tensors that it makes.

trl never builds the logits of all tokens. It takes the hidden states of the labelled tokens, multiplies 4,096 of them
at a time by 32,768 rows of the output head, and folds each tile into the running sums of a softmax; backward makes
each tile again, turns it into the gradient in place, and adds up the gradient of the hidden states in float32
(trl/kernels/chunked_logprob.py). The fold is a Triton kernel on CUDA and a row of torch operators elsewhere.

What is here makes the same tensors for one tile, the first and largest, and computes nothing.

    B = batch, L = length, N = tokens, H = hidden size, V = vocabulary, T = tokens of a tile, C = columns of a tile
"""

from __future__ import annotations

from typing import Any

import torch

from qlora_cli.constants import IGNORE_INDEX

TILE_TOKENS = 4096
TILE_COLUMNS = 32_768
NUM_RUNNING_SUMS = 7

FORWARD_FOLD_BYTES = 13
BACKWARD_FOLD_BYTES = 29
"""Most bytes a tile's element that the operators of the fold hold together where there is no Triton, the tile not
counted: scores, exponentials and their product in float32 and one mask; backward seven float32 tensors and one mask."""

SOFTCAP_BYTES = 4
"""More than that in backward where the scores are capped (Gemma 2): their hyperbolic tangents, in float32."""


def fused_loss(
    hidden_BLH: torch.Tensor, head: Any, labels_BL: torch.Tensor, *, on_cuda: bool, has_softcap: bool = False
) -> torch.Tensor:
    """A scalar that requires a gradient, by way of the fused head's tensors; all tokens are labelled but the first.

    Args:
        hidden_BLH: the backbone's last hidden state.
        head: the output head, a module with `weight` [V, H] and perhaps `bias`.
        labels_BL: token ids.
        on_cuda: whether the fold is a kernel that holds nothing, and unlabelled tokens are left out beforehand.
        has_softcap: whether the scores are capped.
    """
    shifted_BLH, shifted_BL = hidden_BLH[:, :-1], labels_BL[:, 1:]
    mask_BL = shifted_BL != IGNORE_INDEX
    if on_cuda:
        row_N, column_N = (torch.zeros(shifted_BL.numel(), dtype=torch.int64) for _ in range(2))
        hidden_NH, targets_N = shifted_BLH[row_N, column_N], shifted_BL[row_N, column_N]
    else:
        hidden_NH = shifted_BLH.reshape(-1, shifted_BLH.shape[-1])
        targets_N = shifted_BL.clamp(min=0).reshape(-1)
    backward_bytes = 0 if on_cuda else BACKWARD_FOLD_BYTES + (SOFTCAP_BYTES if has_softcap else 0)
    log_probs_N, entropy_N = _FusedHead.apply(hidden_NH, head.weight, head.bias, targets_N, backward_bytes)
    log_probs_BL = log_probs_N.view(mask_BL.shape).masked_fill(~mask_BL, 0)
    entropy_BL = entropy_N.detach().view(mask_BL.shape).masked_fill(~mask_BL, 0)
    del entropy_BL
    loss: torch.Tensor = (-log_probs_BL).sum() / mask_BL.sum().clamp(min=1)
    return loss


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        backward_bytes: int,
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_NH.dtype
        ctx.backward_bytes = backward_bytes  # 0: the fold is a kernel
        num_tokens = hidden_NH.shape[0]
        sums = [torch.empty(num_tokens) for _ in range(NUM_RUNNING_SUMS)]
        buffer = torch.empty(min(num_tokens, TILE_TOKENS), TILE_COLUMNS, dtype=ctx.dtype)
        part = hidden_NH[:TILE_TOKENS].to(ctx.dtype)
        columns = weight_VH[:TILE_COLUMNS].to(ctx.dtype)
        tile_TC = buffer[:, : columns.shape[0]]
        if backward_bytes:
            fold = torch.empty(*tile_TC.shape, FORWARD_FOLD_BYTES, dtype=torch.uint8)
            del fold
        del part, columns
        log_probs_N, entropy_N, log_z_N = (torch.empty(num_tokens) for _ in range(3))
        del sums
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, log_z_N, entropy_N)
        return log_probs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_log_probs: torch.Tensor | None, grad_entropy: torch.Tensor | None) -> Any:
        hidden_NH, weight_VH, bias_V, *_ = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty(hidden_NH.shape) if needs_hidden else None
        grad_weight = torch.empty(weight_VH.shape) if needs_weight else None
        grad_bias = torch.empty(bias_V.shape) if needs_bias else None
        buffer = torch.empty(min(hidden_NH.shape[0], TILE_TOKENS), TILE_COLUMNS, dtype=ctx.dtype)
        part = hidden_NH[:TILE_TOKENS].to(ctx.dtype)
        columns = weight_VH[:TILE_COLUMNS].to(ctx.dtype)
        tile_TC = buffer[:, : columns.shape[0]]
        if ctx.backward_bytes:
            fold = torch.empty(*tile_TC.shape, ctx.backward_bytes, dtype=torch.uint8)
            del fold
            # Products are added up in float32, from float32 copies where the tile is not; CUDA has a kernel for that.
            copies = (tile_TC.float(), columns.float())
            del copies
        del part, columns
        return (
            None if grad_hidden is None else grad_hidden.to(hidden_NH.dtype),
            None if grad_weight is None else grad_weight.to(weight_VH.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            None,
            None,
        )
