"""The stand-in for the fused head makes the tensors that trl's own makes, on a CPU and with a kernel that folds."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig
from trl.kernels import chunked_logprob
from trl.trainer import utils

from qlora_cli.plan.trace.fused_loss import TILE_COLUMNS, TILE_TOKENS, fused_loss
from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.plan.trace.step import count_step
from tests.plan.bases import real_model, request_for, trl_loss

WITHIN = 0.01


class NoKernel:
    """Stands where a Triton kernel would: launched on a grid, it allocates nothing."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@pytest.fixture
def with_triton(monkeypatch):
    """trl takes the road that it takes on CUDA, and its kernels do nothing."""
    for module in (chunked_logprob, utils):
        monkeypatch.setattr(module, "_use_triton", lambda device: True)
    monkeypatch.setattr(chunked_logprob, "_forward_kernel", NoKernel())
    monkeypatch.setattr(chunked_logprob, "_backward_kernel", NoKernel())
    monkeypatch.setattr(chunked_logprob, "triton", type("Triton", (), {"cdiv": lambda a, b: -(-a // b)}), raising=False)


def cuda_loss(model, batch):
    base = model.get_base_model()
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    hidden = base.base_model(**inputs).last_hidden_state
    return fused_loss(hidden, base.get_output_embeddings(), batch["labels"], on_cuda=True)


@pytest.mark.parametrize("settings", [{}, {"lora__modules_to_save": ("lm_head",)}], ids=str)
def test_with_a_kernel_it_holds_what_trls_holds(base_folder, with_triton, settings):
    folder = base_folder("llama")
    request = request_for(AutoConfig.from_pretrained(folder), data__max_length=256, **settings)
    by_trl = count_step(real_model(request, folder), request, trl_loss)
    by_us = count_step(real_model(request, folder), request, cuda_loss)
    assert by_us.largest[MemoryKind.LOSS] == pytest.approx(by_trl.largest[MemoryKind.LOSS], rel=WITHIN)
    assert by_us.peak.num_bytes == pytest.approx(by_trl.peak.num_bytes, rel=WITHIN)


def test_tiles_are_as_large_as_trls():
    assert TILE_TOKENS == chunked_logprob.TOKEN_CHUNK_SIZE
    assert TILE_COLUMNS == utils._CHUNKED_LOGPROB_CHUNK_SIZE


@pytest.mark.parametrize("on_cuda", [True, False])
def test_the_gradient_arrives_where_it_belongs(on_cuda):
    hidden = torch.zeros(2, 5, 8, requires_grad=True)
    head = torch.nn.Linear(8, 11)
    fused_loss(hidden, head, torch.ones(2, 5, dtype=torch.int64), on_cuda=on_cuda).backward()
    assert hidden.grad.shape == hidden.shape
    assert head.weight.grad.shape == head.weight.shape
    assert head.bias.grad.shape == head.bias.shape
