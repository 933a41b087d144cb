"""Contents of a checkpoint, without its manifest."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from qlora_cli.model.adapter import save_adapter
from qlora_cli.run.files import write_json
from qlora_cli.train.checkpoint.state_io import (
    load_state,
    pack_state,
    random_state,
    save_optimizer,
    save_state,
    unpack_state,
)

PROCESSES_NAME = "processes.json"
COLUMNS = ("rows_at_once", "unlogged")
"""Columns of that file, a value for each process."""


@dataclass(frozen=True)
class ProcessState:
    """State that each of the processes that train together has of its own."""

    random: dict[str, Any]
    rows_at_once: int
    """Rows of a forward pass, fewer than the recipe says where memory has run out."""

    unlogged: dict[str, Any] = field(default_factory=dict)
    """Measures since the last line of metrics.jsonl, where not every step has one."""

    @classmethod
    def of_this_process(cls, rows_at_once: int, unlogged: dict[str, Any]) -> ProcessState:
        """As it is now."""
        return cls(random_state(), rows_at_once, unlogged)

    def to_bytes(self) -> bytes:
        """As bytes, for another process."""
        return pack_state({"random": self.random, "rows_at_once": self.rows_at_once, "unlogged": self.unlogged})

    @classmethod
    def from_bytes(cls, packed: bytes) -> ProcessState:
        """The state that `to_bytes` gave."""
        return cls(**unpack_state(packed))


@dataclass(frozen=True)
class TrainingState:
    """State from which a run continues, to the bit."""

    model: PeftModel
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: Any
    """float16's loss scaler; None without one."""

    state: TrainerState
    processes: list[ProcessState]

    def write(self, folder: Path) -> None:
        """Fill a checkpoint's folder. The trainer's log is left out: it grows with the run; metrics.jsonl has it."""
        save_adapter(self.model, folder)
        save_optimizer(folder, self.optimizer)
        save_state(folder, "scheduler", self.scheduler.state_dict())
        for rank, process in enumerate(self.processes):
            save_state(folder, _random_name(rank, len(self.processes)), process.random)
        columns = {name: [getattr(process, name) for process in self.processes] for name in COLUMNS}
        write_json(folder / PROCESSES_NAME, columns)
        if self.scaler is not None:
            save_state(folder, "scaler", self.scaler.state_dict())
        dataclasses.replace(self.state, log_history=[]).save_to_json(str(folder / TRAINER_STATE_NAME))


def load_process(folder: Path, rank: int, world_size: int) -> ProcessState:
    """State that one process had of its own when the checkpoint was written."""
    columns = json.loads((folder / PROCESSES_NAME).read_text("utf-8"))
    values = {name: columns[name][rank] for name in COLUMNS if name in columns}
    return ProcessState(load_state(folder, _random_name(rank, world_size)), **values)


def _random_name(rank: int, world_size: int) -> str:
    """Name of a process's random state; `random` where there is one process."""
    return "random" if world_size == 1 else f"random-{rank}"
