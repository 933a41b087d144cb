"""A merged model read back from its folder as `transformers` reads it, also where it is larger than the memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from qlora_cli.deploy.checkpoint import open_checkpoint
from qlora_cli.model.base import load_base
from qlora_cli.model.device import pick_device
from qlora_cli.plan.machine.host_memory import available_bytes
from qlora_cli.recipe.schema import ModelSection

SHARE_OF_MEMORY = 0.8
"""Of the free memory that weights may take: the rest is for activations, logits and the layer at hand."""


@contextmanager
def reloaded(folder: Path, base: ModelSection, dtype: str) -> Iterator[PreTrainedModel]:
    """The model in a folder, in eval mode.

    It lies on the GPU where it fits there, else in main memory; what fits in neither stays on the disk and is read
    layer by layer in each forward pass (`device_map="auto"` of accelerate).

    Args:
        folder: a merged model.
        base: whose attention and code it has.
        dtype: to compute in, of the weights on disk.
    """
    device = pick_device()
    computes_in = "float32" if dtype == "float16" and device.type == "cpu" else dtype  # the CPU lacks its operations
    settings = {
        "base_model": str(folder),
        "dtype": computes_in,
        # Torch's fused attention runs anywhere; where the run did not use it, some bases have only the plain one.
        "attn_implementation": "sdpa" if base.attn_implementation == "sdpa" else "eager",
        "trust_remote_code": base.trust_remote_code,
    }
    model = ModelSection.model_validate(settings)
    memory = _free_memory(device)
    with TemporaryDirectory(dir=folder, prefix=".offloaded-") as offloaded:
        if _num_bytes(folder, computes_in) <= memory[_key(device)]:
            yield load_base(model, None, device=device).eval()
        elif device.type == "cuda" and _num_bytes(folder, computes_in) <= memory["cpu"]:
            yield load_base(model, None, device=torch.device("cpu")).eval()
        else:
            yield load_base(model, None, max_memory=memory, offloaded=Path(offloaded)).eval()


def is_on_disk(model: PreTrainedModel) -> bool:
    """Whether a part of the model is read anew in each forward pass."""
    return "disk" in getattr(model, "hf_device_map", {}).values()


def _key(device: torch.device) -> int | str:
    return device.index if device.type == "cuda" else "cpu"


def _free_memory(device: torch.device) -> dict[int | str, int]:
    """Bytes that weights may take of each device."""
    main_memory = available_bytes()
    free: dict[int | str, int] = {"cpu": sys.maxsize if main_memory is None else int(SHARE_OF_MEMORY * main_memory)}
    if device.type == "cuda":
        free[_key(device)] = int(SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0])
    return free


def _num_bytes(folder: Path, dtype: str) -> int:
    """Size of the loaded weights."""
    item_size = getattr(torch, dtype).itemsize
    with open_checkpoint(folder) as checkpoint:
        return sum(tensor.num_bytes // tensor.dtype.itemsize * item_size for tensor in checkpoint.tensors.values())
