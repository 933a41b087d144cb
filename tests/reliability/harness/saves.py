"""The saves of a run without its training: a real adapter and a real optimizer's state, into real checkpoints."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from qlora_cli import console
from qlora_cli.errors import QloraError
from qlora_cli.model.adapter import save_adapter
from qlora_cli.run.checkpoints import rotate_checkpoints, staged_checkpoint
from qlora_cli.run.claim import claimed
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.disk_errors import storage_faults
from qlora_cli.run.folders import replaced_folder
from qlora_cli.train.checkpoint.state_io import random_state, save_optimizer, save_state
from tests.tiny_models import tiny_llama

FACTS = {f"{section}_fingerprint": section[0] * 64 for section in ("base", "tokenizer", "template", "data")}
KEPT = 2


@cache
def parts() -> tuple[PeftModel, torch.optim.Optimizer, Any]:
    """Adapter, optimizer and schedule after one step."""
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(64), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def save_step(run: RunDirectory, step: int, facts: dict[str, Any] = FACTS) -> Path:
    """One checkpoint as training writes it, and the rotation after it."""
    model, optimizer, schedule = parts()
    with staged_checkpoint(run.checkpoints_path, step, facts) as folder:
        save_adapter(model, folder)
        save_optimizer(folder, optimizer)
        save_state(folder, "scheduler", {**schedule.state_dict(), "step": step})
        save_state(folder, "random", random_state())
    rotate_checkpoints(run.checkpoints_path, keep=KEPT)
    return run.checkpoints_path / f"step-{step:06d}"


def save_final_adapter(run: RunDirectory) -> None:
    """What a finished run leaves."""
    with storage_faults(run), replaced_folder(run.adapter_path) as folder:
        save_adapter(parts()[0], folder)


def save(run: str, step: int | None) -> int:
    """In a child: save a step, or the final adapter where there is none; the exit code that `qlora` would give."""
    directory = RunDirectory(Path(run))
    try:
        with claimed(directory):
            if step is None:
                save_final_adapter(directory)
            else:
                save_step(directory, step)
    except QloraError as error:
        console.show_error(error)
        return error.exit_code
    return 0


parts()
