"""Optimizer, scheduler and random state as safetensors and JSON, exact to the bit and without pickle."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save, save_file

from qlora_cli import compat
from qlora_cli.run.files import write_json

TENSOR_KEY = "$tensor"
TREE_KEY = "$tree"


def save_state(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Write a state dict: tensors to `<name>.safetensors`, all else to `<name>.json`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_state(folder, "scheduler", {"last_lr": [0.1], "moment": torch.ones(2)})
    >>> load_state(folder, "scheduler")
    {'last_lr': [0.1], 'moment': tensor([1., 1.])}
    """
    tensors: dict[str, torch.Tensor] = {}
    write_json(folder / f"{name}.json", _without_tensors(state, name, tensors))
    save_file(tensors, folder / f"{name}.safetensors")


def load_state(folder: Path, name: str) -> dict[str, Any]:
    """Read what `save_state` wrote; tensors come to the CPU.

    They are read, not mapped: an optimizer keeps the very tensors, and must not change or end with the file.
    """
    tree = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    restored: dict[str, Any] = _with_tensors(tree, load((folder / f"{name}.safetensors").read_bytes()))
    return restored


def pack_state(state: dict[str, Any]) -> bytes:
    """A state dict as bytes, for another process.

    >>> unpack_state(pack_state({"last_lr": [0.1], "moment": torch.ones(2)}))
    {'last_lr': [0.1], 'moment': tensor([1., 1.])}
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_without_tensors(state, "state", tensors)).encode()
    packed: bytes = save(tensors | {TREE_KEY: torch.frombuffer(bytearray(tree), dtype=torch.uint8)})
    return packed


def unpack_state(packed: bytes) -> dict[str, Any]:
    """The state that `pack_state` packed."""
    tensors = load(packed)
    restored: dict[str, Any] = _with_tensors(json.loads(bytes(tensors[TREE_KEY].tolist())), tensors)
    return restored


def _without_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        # A copy, since bitsandbytes shares one code table between parameters and safetensors stores each apart.
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {TENSOR_KEY: path}
    if isinstance(value, dict):
        return {str(key): _without_tensors(item, f"{path}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {TENSOR_KEY}:
            return tensors[value[TENSOR_KEY]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value


def save_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Write the optimizer's state to `optimizer.json` and `optimizer.safetensors`."""
    save_state(folder, "optimizer", optimizer.state_dict())


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Bring back what `save_optimizer` wrote; the optimizer must hold the same parameters in the same order."""
    state = load_state(folder, "optimizer")
    state["state"] = {int(index): values for index, values in state["state"].items()}  # JSON keys are text
    optimizer.load_state_dict(state)
    compat.page_loaded_state(optimizer)


def load_schedule(folder: Path, schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
    """Bring back where the schedule was, and set the next step's learning rate by it.

    The checkpoint holds that rate too, for the length that the run had then.
    """
    schedule.load_state_dict(load_state(folder, "scheduler"))
    shares = (share(schedule.last_epoch) for share in schedule.lr_lambdas)
    schedule._last_lr = [base * share for base, share in zip(schedule.base_lrs, shares, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


def random_state() -> dict[str, Any]:
    """State of every random generator that training draws from: Python, NumPy, torch on CPU and on CUDA."""
    algorithm, keys, position, has_gauss, cached_gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [algorithm, np.asarray(keys).tolist(), position, has_gauss, cached_gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set every generator to what `random_state` returned, also after a way through JSON."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    algorithm, keys, position, has_gauss, cached_gauss = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, cached_gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
