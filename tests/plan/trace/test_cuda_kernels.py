"""What differs between the CPU's operators and CUDA's."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from torch.nn import functional

from qlora_cli.plan.trace.cuda_kernels import AsOnCuda, cuda_autocast, workspaces
from qlora_cli.plan.trace.fake_model import fake_tensors
from qlora_cli.plan.trace.live_memory import LiveMemory, MemoryKind
from qlora_cli.plan.trace.step import fake_step
from tests.plan.bases import AMPERE, CPU, config_of, request_for


def test_dropout_keeps_one_byte_an_element():
    with fake_tensors(), LiveMemory() as memory:
        tensor = torch.empty(1000, requires_grad=True)
        with AsOnCuda(AMPERE):
            dropped = functional.dropout(tensor, 0.1)
    alive = [block.num_bytes for block in memory.blocks if block.freed_at is None]
    assert sorted(alive) == [1000, 4000, 4000]
    assert dropped.requires_grad


def test_no_dropout_costs_nothing():
    with fake_tensors(), AsOnCuda(AMPERE):
        tensor = torch.empty(10)
        assert functional.dropout(tensor, 0.0) is tensor
        assert functional.dropout(tensor, 0.5, training=False) is tensor


@pytest.mark.parametrize(
    ("compute", "dtype"),
    [
        (lambda x: functional.layer_norm(x, (8,)), torch.float32),
        (lambda x: x.pow(3), torch.float32),
        (lambda x: torch.softmax(x, -1), torch.float32),
        (lambda x: functional.gelu(x), torch.bfloat16),
        (lambda x: x @ x.t(), torch.bfloat16),
    ],
)
def test_autocast_computes_in_float32_what_it_does_on_cuda(compute, dtype):
    with fake_tensors(), AsOnCuda(AMPERE), cuda_autocast(torch.bfloat16):
        assert compute(torch.empty(8, 8, dtype=torch.bfloat16)).dtype is dtype


def test_code_that_asks_whether_cuda_casts_is_told_so_only_meanwhile():
    with cuda_autocast(torch.bfloat16):
        assert torch.is_autocast_enabled()
    assert not torch.is_autocast_enabled()
    with cuda_autocast(None):
        assert not torch.is_autocast_enabled()


def product(request, *, double_quant):
    with fake_tensors(), LiveMemory(workspaces(request)) as memory:
        packed, state = bnb.functional.quantize_4bit(
            torch.empty(128, 64), quant_type="nf4", compress_statistics=double_quant
        )
        start = memory.clock
        bnb.matmul_4bit(torch.empty(3, 64), packed.t(), quant_state=state)
    return sorted(
        block.num_bytes
        for block in memory.blocks
        if block.allocated_at > start and block.kind is MemoryKind.DEQUANTIZED
    )


def test_a_four_bit_product_dequantizes_the_whole_weight():
    weight, constants = 128 * 64 * 4, 128 * 64 // 64 * 4
    assert product(request_for(config_of("llama"), CPU), double_quant=False) == [weight]
    assert product(request_for(config_of("llama"), CPU), double_quant=True) == [constants, weight]
    assert product(request_for(config_of("llama"), AMPERE), double_quant=True) == [constants, constants, weight]


def test_int8_products_on_cuda_pass_through_int32():
    config = config_of("llama")
    trace = fake_step(request_for(config, AMPERE, quantization__quant_type="int8"))
    sizes = {life.num_bytes for life in trace.lives if life.kind is MemoryKind.TEMPORARY}
    assert 2 * 64 * config.intermediate_size * 4 in sizes


def test_the_unfused_adamw_holds_a_root_for_every_trained_weight():
    fused, unfused = (
        fake_step(request_for(config_of("llama"), AMPERE, training__optim=name))
        for name in ("adamw_torch_fused", "adamw_torch")
    )
    adapter = fused.largest[MemoryKind.ADAPTER]
    sizes = [life.num_bytes for life in unfused.lives if life.kind is MemoryKind.KERNEL_WORKSPACE]
    assert adapter in sizes
    assert adapter not in [life.num_bytes for life in fused.lives if life.kind is MemoryKind.KERNEL_WORKSPACE]


def test_experts_are_traced_in_both_precisions():
    for device in (CPU, AMPERE):
        assert fake_step(request_for(config_of("mixtral"), device)).peak.num_bytes > 0
