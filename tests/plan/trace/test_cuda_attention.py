"""Attention takes the kernel that torch would take on the device, and keeps what that kernel keeps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.trace.cuda_attention import AS_FLASH, WITHOUT_MASK, attention_on
from qlora_cli.plan.trace.cuda_kernels import AsOnCuda, workspaces
from qlora_cli.plan.trace.fake_model import fake_tensors
from qlora_cli.plan.trace.live_memory import LiveMemory, MemoryKind
from qlora_cli.plan.trace.timeline import finished_trace
from qlora_cli.plan.trace.trace_step import trace_step
from tests.plan.bases import AMPERE, config_of, request_for

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


class Operators(torch.utils._python_dispatch.TorchDispatchMode):
    """Writes down which operators run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def attend(device, *, dtype=BFLOAT16, width=64, has_mask=True, shared=False, length=96):
    """One attention, 4 heads of one row, forward and backward, on fake tensors."""
    query = torch.zeros(1, 4, length, width, dtype=dtype, requires_grad=True)
    key, value = (torch.zeros(1, 2 if shared else 4, length, width, dtype=dtype, requires_grad=True) for _ in range(2))
    mask = torch.ones(1, 1, length, length, dtype=torch.bool) if has_mask else None
    with AsOnCuda(device):
        output = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=not has_mask, enable_gqa=shared
        )
    output.sum().backward()
    return output


@pytest.mark.parametrize(
    ("capability", "arguments", "kernel"),
    [
        ((8, 0), {"has_mask": False}, "flash"),
        ((8, 9), {"has_mask": True}, "efficient"),
        ((8, 0), {"has_mask": False, "dtype": FLOAT32}, "efficient"),
        ((9, 0), {"has_mask": True}, "cudnn"),
        ((10, 0), {"has_mask": False}, "cudnn"),
        ((9, 0), {"has_mask": False, "width": 256}, "flash"),
        ((12, 0), {"has_mask": True}, "efficient"),
        ((7, 5), {"has_mask": False, "dtype": torch.float16}, "efficient"),
        ((7, 5), {"has_mask": False, "dtype": torch.float16, "shared": True}, "math"),
        ((8, 0), {"has_mask": False, "width": 36}, "flash"),
        ((8, 0), {"has_mask": True, "width": 36}, "math"),
    ],
)
def test_the_kernel_is_the_one_that_torch_prefers(capability, arguments, kernel):
    with fake_tensors(), Operators() as operators:
        attend(Device("cuda", capability), **arguments)
    taken = {name for name in operators.names if "attention" in name and "backward" not in name}
    expected = set() if kernel == "math" else {f"aten::_scaled_dot_product_{kernel}_attention"}
    assert taken == expected


def traced(device, **arguments):
    request = request_for(config_of("llama"), device)
    with fake_tensors(), LiveMemory(workspaces(request)) as memory:
        attend(device, **arguments)
    return finished_trace(memory)


def sizes(trace, kind=None):
    return sorted(life.num_bytes for life in trace.lives if kind is None or life.kind is kind)


def test_no_fused_kernel_holds_scores_of_all_pairs():
    scores = 4 * 96 * 96 * 2
    for capability in ((8, 0), (9, 0)):
        assert scores not in sizes(traced(Device("cuda", capability)))
    assert scores in sizes(traced(Device("cuda", (7, 5)), width=36, dtype=torch.float16))


def test_every_layer_converts_the_mask_to_the_queries_dtype():
    assert 96 * 96 * 2 in sizes(traced(AMPERE))
    assert 96 * 96 * 2 not in sizes(traced(AMPERE, has_mask=False))


def test_a_mask_of_odd_length_is_padded_to_sixteen():
    assert 90 * 96 * 2 in sizes(traced(AMPERE, length=90))


def test_backward_of_flash_attention_adds_up_queries_in_float32():
    rows = 128  # 96 rounded up
    found = sizes(traced(AMPERE, has_mask=False), MemoryKind.KERNEL_WORKSPACE)
    assert found == [4 * rows * 4, 4 * rows * 64 * 4]


def test_backward_of_shared_heads_holds_a_gradient_for_each_query_head():
    found = sizes(traced(AMPERE, has_mask=False, shared=True), MemoryKind.KERNEL_WORKSPACE)
    assert 2 * 4 * 96 * 64 * 2 in found


def test_backward_of_the_efficient_kernel_adds_up_queries_in_float32():
    assert sizes(traced(AMPERE), MemoryKind.KERNEL_WORKSPACE) == [4 * 96 * 4, 4 * 128 * 64 * 4]


def test_wide_heads_add_up_keys_and_values_too():
    narrow, wide = (sizes(traced(AMPERE, width=width), MemoryKind.KERNEL_WORKSPACE)[-1] for width in (128, 256))
    assert wide > 2 * narrow


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "sdpa"),
        ({"model__attn_implementation": "eager"}, "eager"),
        ({"model__attn_implementation": "flash_attention_2"}, AS_FLASH),
        ({"data__packing": False, "training__per_device_train_batch_size": 1}, WITHOUT_MASK),
        ({"data__packing": False, "training__per_device_train_batch_size": 2}, "sdpa"),
    ],
    ids=str,
)
def test_a_mask_is_made_where_rows_hold_several_documents_or_padding(settings, name):
    assert attention_on(request_for(config_of("llama"), AMPERE, **settings)) == name


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_values_narrower_than_queries_can_be_planned(attention):
    """DeepSeek-V2 and V3 have heads of 192 for queries and of 128 for values."""
    config = config_of("deepseek_v3")
    config.v_head_dim = 8
    request = request_for(config, AMPERE, model__attn_implementation=attention, model__dtype="bfloat16")
    assert trace_step(request).peak.num_bytes > 0
