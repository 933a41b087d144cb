"""Collective operations of two processes, each checking what it gets."""

from __future__ import annotations

import pytest
import torch

from qlora_cli.errors import IdentityError
from qlora_cli.train.processes.collectives import ProcessGroup
from qlora_cli.train.processes.launch import take_launch
from qlora_cli.train.processes.monitor import monitored
from tests.reliability.harness.rank_runs import set_place


def check(rank: int, num: int, port: int, arguments: list[str]) -> int:
    """In a child, with a rank of its own; 0 if all is as it must be."""
    set_place(rank, num, port)
    with monitored(take_launch()) as monitor:
        group = ProcessGroup(monitor)
        group.init(torch.device("cpu"))
        assert group.all_reduce_sum([0.1, rank]) == [0.2, 1.0]
        assert group.all_reduce_max(10 - rank) == 10
        assert group.all_gather_bytes(b"x" * rank) == [b"", b"x"]
        check_gradients(group)
        value = torch.nn.Parameter(torch.full((2,), float(rank)))
        group.broadcast_parameters([value])
        assert value.tolist() == [0.0, 0.0]
        group.check_equal("answer", "42")
        with pytest.raises(IdentityError, match="process 1 has another answer than process 0: 1 instead of 0"):
            group.check_equal("answer", str(rank))
        group.destroy()
    return 0


def check_gradients(group: ProcessGroup) -> None:
    """Of five parameters: used by both, by one, by none, in bfloat16, and frozen."""
    both, one, none = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
    half = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    frozen = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    both.grad = torch.tensor([1.0, 2.0, 3.0]) * (group.rank + 1)
    half.grad = torch.ones(2, dtype=torch.bfloat16)
    if group.rank == 1:
        one.grad = torch.ones(3)
    group.sum_gradients([both, one, none, half, frozen])
    assert both.grad.tolist() == [3.0, 6.0, 9.0]
    assert one.grad.tolist() == [1.0, 1.0, 1.0]
    assert none.grad is None
    assert half.grad.dtype is torch.bfloat16
    assert half.grad.tolist() == [2.0, 2.0]
