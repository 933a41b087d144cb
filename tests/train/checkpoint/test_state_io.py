"""State dicts come back to the bit, through JSON and safetensors."""

from __future__ import annotations

import random

import bitsandbytes as bnb
import numpy as np
import pytest
import torch

from qlora_cli.train.checkpoint.state_io import (
    load_optimizer,
    load_state,
    random_state,
    restore_random_state,
    save_optimizer,
    save_state,
)


def stepped(optimizer_class):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(128, 64)), torch.nn.Parameter(torch.randn(8))]
    optimizer = optimizer_class(parameters, lr=1e-2)
    for _ in range(3):
        step(parameters, optimizer)
    return parameters, optimizer


def step(parameters, optimizer):
    sum((parameter**3).sum() for parameter in parameters).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, bnb.optim.AdamW8bit, bnb.optim.PagedAdamW32bit])
def test_an_optimizer_that_was_saved_takes_the_same_next_steps(tmp_path, optimizer_class):
    parameters, optimizer = stepped(optimizer_class)
    save_optimizer(tmp_path, optimizer)
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    restored = optimizer_class(copies, lr=1e-2)
    load_optimizer(tmp_path, restored)
    for _ in range(3):
        step(parameters, optimizer)
        step(copies, restored)
    assert all(torch.equal(one, other) for one, other in zip(parameters, copies, strict=True))


def test_state_that_was_loaded_lies_where_the_optimizer_allocates_it(tmp_path):
    allocated = []

    class Watched(bnb.optim.PagedAdamW32bit):
        def get_state_buffer(self, p, dtype=torch.float32):
            allocated.append(torch.full_like(p, float("nan"), dtype=dtype))
            return allocated[-1]

    parameters, optimizer = stepped(bnb.optim.PagedAdamW32bit)
    save_optimizer(tmp_path, optimizer)
    restored = Watched([torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters], lr=1e-2)
    load_optimizer(tmp_path, restored)
    for saved, values in zip(optimizer.state.values(), restored.state.values(), strict=True):
        for name in ("state1", "state2"):
            assert any(values[name] is buffer for buffer in allocated)
            assert torch.equal(values[name], saved[name])


def test_floats_survive_json_exactly(tmp_path):
    save_state(tmp_path, "scheduler", {"last_lr": [0.1 + 0.2, 1e-308], "none": None})
    assert load_state(tmp_path, "scheduler") == {"last_lr": [0.1 + 0.2, 1e-308], "none": None}


def test_every_generator_goes_on_where_it_was(tmp_path):
    save_state(tmp_path, "random", random_state())
    drawn = (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3))
    restore_random_state(load_state(tmp_path, "random"))
    again = (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3))
    assert drawn[:4] == again[:4]
    assert torch.equal(drawn[4], again[4])


def test_an_optimizer_does_not_change_with_the_file_that_it_was_loaded_from(tmp_path):
    """A mapped file would: rotation may delete it, and a disk may lose it, during training."""
    _, optimizer = stepped(torch.optim.AdamW)
    save_optimizer(tmp_path, optimizer)
    _, restored = stepped(torch.optim.AdamW)
    load_optimizer(tmp_path, restored)
    path = tmp_path / "optimizer.safetensors"
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    for saved, values in zip(optimizer.state.values(), restored.state.values(), strict=True):
        assert torch.equal(values["exp_avg"], saved["exp_avg"])
