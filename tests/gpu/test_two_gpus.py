"""Two GPUs, one process on each: the same losses as one GPU with twice the rows, and a resume to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.support import NEEDS_GPU
from tests.reliability.harness.rank_runs import content, free_port, metrics, write_recipe

pytestmark = [
    *NEEDS_GPU,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
]


def train(recipe: Path, run: Path, *more: str, num: int = 2) -> None:
    """Through torchrun, in as many processes."""
    launcher = ["torch.distributed.run", "--nproc-per-node", str(num), "--master-port", str(free_port())]
    command = [sys.executable, "-m", *launcher, "-m", "qlora_cli", "train", str(recipe), "--run-dir", str(run), *more]
    subprocess.run(command, env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, check=True, timeout=300)


def test_two_gpus_find_the_losses_of_one_with_twice_the_rows(tiny_base, chat_data, tmp_path):
    losses = {}
    for num, batch_size in ((1, 4), (2, 2)):
        training = {"per_device_train_batch_size": batch_size, "learning_rate": 1e-4, "optim": "adamw_torch"}
        sections = {"model": {"dtype": "float32"}, "lora": {"lora_dropout": 0.0}, "training": training}
        recipe = write_recipe(tmp_path / f"{num}.yaml", tiny_base, chat_data, **sections)
        train(recipe, tmp_path / str(num), num=num)
        losses[num] = [line.get("loss", line.get("eval_loss")) for line in metrics(tmp_path / str(num))]
    assert losses[1] == pytest.approx(losses[2], abs=1e-4)


def test_a_resumed_run_on_two_gpus_is_the_straight_one(tiny_base, chat_data, tmp_path):
    recipe = write_recipe(tmp_path / "two.yaml", tiny_base, chat_data, quantization={"quant_type": "nf4"})
    train(recipe, tmp_path / "straight")
    train(recipe, tmp_path / "run", "--stop-after", "3")
    train(recipe, tmp_path / "run", "--resume")
    assert content(tmp_path / "run") == content(tmp_path / "straight")
