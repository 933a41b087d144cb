"""The default optimizer pages its state on CUDA, from the first step on and after a resume."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch

from qlora_cli.run.checkpoints import newest_whole
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.arguments import optimizer_on
from tests.gpu.support import NEEDS_GPU, build_trainer, is_managed_memory

pytestmark = NEEDS_GPU

SMALLEST_PAGED = 100_000
"""Elements from which on bitsandbytes pages a state tensor (`Optimizer8bit.get_state_buffer`)."""

LARGE = {"r": 2048}
"""On the tiny base's 64 inputs A has 131,072 elements and is paged; B on 32 outputs has 65,536 and is not."""


def trained(recipe, path, *, stop_after=None, resume_from=None):
    trainer = build_trainer(recipe, RunDirectory(path), stop_after=stop_after)
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer.optimizer.optimizer


def check_paging(optimizer) -> None:
    sizes = {parameter.numel() >= SMALLEST_PAGED for parameter in optimizer.state}
    assert sizes == {True, False}
    for parameter, values in optimizer.state.items():
        for name in ("state1", "state2"):
            is_large = parameter.numel() >= SMALLEST_PAGED
            assert getattr(values[name], "is_paged", False) is is_large
            assert is_managed_memory(values[name]) is is_large
            assert values[name].count_nonzero() > 0


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_large_state_lies_in_memory_that_the_driver_pages(gpu_recipe, tmp_path, optim):
    recipe = gpu_recipe(lora=LARGE, training={"max_steps": 4, "optim": optim})
    assert optimizer_on(optim, torch.device("cuda")) == optim
    optimizer = trained(recipe, tmp_path)
    assert optimizer.is_paged
    assert optimizer.args.optim_bits == (8 if optim.endswith("8bit") else 32)
    check_paging(optimizer)


def test_unpaged_optimizers_keep_their_state_on_the_gpu(gpu_recipe, tmp_path):
    optimizer = trained(gpu_recipe(lora=LARGE, training={"max_steps": 1, "optim": "adamw_8bit"}), tmp_path)
    assert not optimizer.is_paged
    assert {values["state1"].device.type for values in optimizer.state.values()} == {"cuda"}


@pytest.mark.parametrize("optim", ["paged_adamw_8bit", "paged_adamw_32bit"])
def test_a_resumed_run_pages_again(gpu_recipe, tmp_path, optim):
    recipe = gpu_recipe(lora=LARGE, training={"max_steps": 4, "optim": optim})
    trained(recipe, tmp_path, stop_after=2)
    checkpoint, _ = newest_whole(RunDirectory(tmp_path).checkpoints_path)
    assert checkpoint.step == 2
    check_paging(trained(recipe, tmp_path, resume_from=str(checkpoint.path)))


def test_paging_changes_no_bit_of_an_update():
    results = []
    for optimizer_class in (bnb.optim.AdamW8bit, bnb.optim.PagedAdamW8bit):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(512, 512, device="cuda"))
        optimizer = optimizer_class([parameter], lr=1e-2)
        for _ in range(5):
            (parameter**3).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(parameter.detach())
    assert torch.equal(*results)
