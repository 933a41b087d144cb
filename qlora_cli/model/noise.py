"""NEFTune: noise on the embeddings while training (Jain et al. 2023, arXiv:2310.05914).

    B = rows, L = row length, H = hidden size

Each element of a token's embedding gets a number drawn evenly from -a to a, with a = alpha / sqrt(n * H) and n the
tokens of the token's own document. A packed row holds several documents; its own length would make the noise of each
too small.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn


def document_lengths(position_ids_BL: torch.Tensor) -> torch.Tensor:
    """Tokens of the document that each token belongs to; positions restart at each document.

    >>> document_lengths(torch.tensor([[0, 1, 2, 0, 1]]))
    tensor([[3, 3, 3, 2, 2]])
    """
    document_BL = (position_ids_BL == 0).long().cumsum(dim=1)
    counts = torch.zeros_like(document_BL).scatter_add(1, document_BL - 1, torch.ones_like(document_BL))
    return counts.gather(1, document_BL - 1)


def add_embedding_noise(model: PeftModel, alpha: float) -> None:
    """Have the embeddings of `model` noisy whenever it is in training mode.

    The noise is drawn from torch's generator of the device, as dropout is, so a checkpoint holds its state.
    """
    base = model.get_base_model()
    lengths: list[torch.Tensor] = []

    def see_documents(module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        if module.training:
            lengths[:] = [document_lengths(options["position_ids"])]

    def blur(module: nn.Module, arguments: Any, embedded_BLH: torch.Tensor) -> torch.Tensor | None:
        if not module.training:
            return None
        bound_BL = alpha / (lengths[0] * embedded_BLH.shape[-1]).sqrt()
        noise_BLH = torch.empty_like(embedded_BLH).uniform_(-1, 1)
        return embedded_BLH + noise_BLH * bound_BL.to(embedded_BLH.dtype).unsqueeze(-1)

    base.base_model.register_forward_pre_hook(see_documents, with_kwargs=True)
    base.get_input_embeddings().register_forward_hook(blur)
