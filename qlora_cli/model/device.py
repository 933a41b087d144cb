"""Device and precision of a model."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch

from qlora_cli.constants import AMPERE
from qlora_cli.errors import RecipeError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

ALLOCATOR_FAULTS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate")
"""Errors of libraries that got no memory, where torch has no error of its own for it."""


def pick_device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that `model.dtype` stands for on `device`.

    Args:
        name: a key of `DTYPES`, or "auto": bfloat16 on GPUs that compute in it (compute capability 8.0 and
            later), float16 on older ones, float32 on CPU.
        device: where the model will run.

    Raises:
        RecipeError: if the device cannot compute in that dtype.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if _computes_in_bfloat16(device) else torch.float16
    dtype = DTYPES[name]
    if dtype is torch.float16 and device.type == "cpu":
        raise RecipeError(
            "model.dtype is float16, but this machine has no GPU and float16 training needs one",
            hint="--set model.dtype=auto",
        )
    if dtype is torch.bfloat16 and device.type == "cuda" and not _computes_in_bfloat16(device):
        raise RecipeError(
            f"model.dtype is bfloat16, but {torch.cuda.get_device_name(device)} does not compute in it",
            hint="--set model.dtype=float16",
        )
    return dtype


def _computes_in_bfloat16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= AMPERE


def precision_of(model: PeftModel | PreTrainedModel) -> str:
    """In which precision a model computes, and where: `float32 on cpu`.

    Quantized weights are multiplied in the dtype of the weights that are not quantized.
    """
    return f"{dtype_name(model.get_input_embeddings().weight.dtype)} on {model.device.type}"


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def free_memory() -> None:
    """Free what a model or a failed pass took: both leave reference cycles, and torch keeps freed GPU memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(fault: RuntimeError) -> bool:
    """Whether memory was asked for and not given.

    >>> is_out_of_memory(torch.OutOfMemoryError("no")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    return isinstance(fault, torch.OutOfMemoryError) or any(text in str(fault) for text in ALLOCATOR_FAULTS)
