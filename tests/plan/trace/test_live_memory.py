"""The mode counts each storage once, for as long as it lives."""

from __future__ import annotations

import torch

from qlora_cli.plan.trace.live_memory import LiveMemory, MemoryKind, Stage
from qlora_cli.plan.trace.timeline import finished_trace


def sizes(memory):
    return [block.num_bytes for block in memory.blocks]


def test_a_view_and_an_in_place_result_cost_nothing():
    with LiveMemory() as memory:
        tensor = torch.empty(256)
        tensor.view(16, 16).t().add_(1)
        tensor[3:7].mul_(2)
    assert sizes(memory) == [1024]


def test_a_storage_lives_until_its_last_view_is_gone():
    with LiveMemory() as memory:
        view = torch.empty(256)[:4]
        assert memory.blocks[0].freed_at is None
        del view
        torch.empty(1)
    assert memory.blocks[0].freed_at is not None


def test_what_autograd_keeps_lives_on():
    weight = torch.randn(8, 8, requires_grad=True)
    with LiveMemory() as memory:
        output = torch.exp(weight * 2).sum()
        alive = sum(block.num_bytes for block in memory.blocks if block.freed_at is None)
        output.backward()
        del output
    assert alive == 256 + 4  # the exponential, which its backward needs, and the sum
    assert [block.num_bytes for block in memory.blocks if block.freed_at is None] == [256]  # the gradient


def test_a_kernels_workspace_lives_while_it_runs():
    rule = {torch.ops.aten.mm.default: lambda args: [(MemoryKind.KERNEL_WORKSPACE, 5000)]}
    with LiveMemory(rule) as memory:
        product = torch.randn(4, 4) @ torch.randn(4, 4)
    [scratch] = [block for block in memory.blocks if block.kind is MemoryKind.KERNEL_WORKSPACE]
    [result] = [block for block in memory.blocks if block.allocated_at > scratch.allocated_at]
    assert scratch.allocated_at < result.allocated_at < scratch.freed_at
    assert product.shape == (4, 4)


def test_an_empty_tensor_is_not_counted():
    with LiveMemory() as memory:
        torch.empty(0, 5)
    assert memory.blocks == []


def test_what_forward_leaves_to_backward_is_an_activation():
    with LiveMemory() as memory:
        memory.enter(Stage.FORWARD, 0)
        kept = torch.empty(1000)
        torch.empty(3000)
        memory.enter(Stage.LOSS)
        torch.empty(7)
        memory.enter(Stage.BACKWARD, 0)
        del kept
    trace = finished_trace(memory)
    assert trace.largest == {MemoryKind.ACTIVATIONS: 4000, MemoryKind.LOSS: 28, MemoryKind.TEMPORARY: 12_000}


def test_settled_memory_is_there_from_the_start_whenever_it_was_made():
    with LiveMemory() as memory:
        memory.enter(Stage.OPTIMIZER)
        torch.empty(10)
        state = torch.empty(100)
        memory.settle(state, MemoryKind.OPTIMIZER, layer=3)
    trace = finished_trace(memory)
    assert trace.at(0).by_kind == {MemoryKind.OPTIMIZER: 400}
    assert [life.layer for life in trace.lives if life.kind is MemoryKind.OPTIMIZER] == [3]


def test_forgotten_memory_is_nowhere():
    with LiveMemory() as memory:
        elsewhere = torch.empty(10)
        memory.forget(elsewhere)
        del elsewhere
    assert memory.blocks == []
