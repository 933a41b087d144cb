"""Memory of a step on this machine, predicted before the model is loaded, and the record of what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from qlora_cli import console
from qlora_cli.constants import GIB
from qlora_cli.errors import RecipeError, ResourceError
from qlora_cli.model.base import read_config
from qlora_cli.model.device import pick_device
from qlora_cli.model.prequantized import recipe_on
from qlora_cli.plan.auto_batch_size import with_auto_batch_size
from qlora_cli.plan.budget import DeviceMemory, context_on
from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.machine.host_memory import available_bytes
from qlora_cli.plan.report import this_gpu
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace_cache import Tracer
from qlora_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class MemoryForecast:
    """A step of the recipe on this machine."""

    micro_batch_size: int
    needs: DeviceMemory | None = None
    """Memory that each process takes; None where the step was not traced."""

    @classmethod
    def unknown(cls, recipe: Recipe) -> MemoryForecast:
        """All rows of a pass together, until memory runs out."""
        return cls(recipe.training.rows_at_once)


def forecast_memory(recipe: Recipe, *, num_processes: int = 1, force: bool = False) -> MemoryForecast:
    """Trace a step, and see whether it fits into the memory that is free now.

    A base whose step cannot be traced is trained anyway; if something is wrong with it, training says so.

    Args:
        recipe: what is to be trained.
        num_processes: that share the host's memory where there is no GPU.
        force: only warn where it does not fit.

    Raises:
        RecipeError: if the base's configuration cannot be found or read.
        ResourceError: if it does not fit.
    """
    device = _this_device(num_processes)
    memory = _free_bytes(device)
    tracer = Tracer()
    config = read_config(recipe.model)
    asked = PlanRequest(recipe_on(recipe, config), config, device)
    try:
        request = with_auto_batch_size(asked, memory, tracer)
        needs = tracer.needs(request)
    except RecipeError as error:
        console.note(f"memory is not planned: {error.problems[0].text}")
        return MemoryForecast.unknown(recipe)
    if memory is not None and needs.device_bytes > memory:
        _refuse(recipe, needs.device_bytes, memory, force=force)
    if recipe.training.per_device_train_batch_size == "auto":
        console.note(
            f"batch size: {request.batch_size} of the {recipe.training.rows_per_step} rows of a step in one pass, "
            f"planned to take {needs.device_bytes / GIB:.1f} GiB"
        )
    return MemoryForecast(request.batch_size, needs)


def _this_device(num_processes: int) -> Device:
    is_gpu = pick_device().type == "cuda"
    return replace(this_gpu().device if is_gpu else Device("cpu"), num_gpus=num_processes)


def _free_bytes(device: Device) -> int | None:
    """Memory that this process may take, including what it holds of a GPU already; None where it is not known."""
    if device.kind == "cpu":
        available = available_bytes()
        return None if available is None else available // device.num_gpus
    free, _ = torch.cuda.mem_get_info()
    return free + context_on(device)[0]


def _refuse(recipe: Recipe, needed: int, memory: int, *, force: bool) -> None:
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "this machine"
    problem = (
        f"a step needs {needed / GIB:.1f} GiB, {(needed - memory) / GIB:.1f} more than the {memory / GIB:.1f} GiB that "
        f"are free on {where}"
    )
    if force:
        console.warn(f"{problem}; it is tried anyway")
        return
    raise ResourceError(
        problem,
        hint=f"{_automatic_batch(recipe)}{memory_saving_options(recipe)}; --force tries it anyway",
    )


def _automatic_batch(recipe: Recipe) -> str:
    training = recipe.training
    if training.rows_at_once == 1:
        return ""
    rows = f"--set training.gradient_accumulation_steps={training.rows_per_step}"
    return f"--set training.per_device_train_batch_size=auto {rows}, then "


def memory_record(forecast: MemoryForecast, measured: Mapping[str, int], micro_batch_size: int) -> dict[str, Any]:
    """Predicted and measured bytes, and rows of a forward pass, as the manifest holds them.

    Args:
        forecast: of the step.
        measured: bytes by what was counted.
        micro_batch_size: at the end; less than planned where memory has run out.
    """
    needs = forecast.needs
    predicted = {} if needs is None else {"allocated": needs.allocated_bytes, "reserved": needs.reserved_bytes}
    return {
        "predicted_bytes": predicted,
        "measured_bytes": dict(measured),
        "micro_batch_size": {"planned": forecast.micro_batch_size, "used": micro_batch_size},
    }


def out_of_memory_hint(recipe: Recipe) -> str:
    """Options to type where not even a single row fits."""
    return f"start over with another --run-dir and {memory_saving_options(recipe)}"


def memory_saving_options(recipe: Recipe) -> str:
    """Options that save memory, cheapest first; `qlora plan --fit` says how much each saves."""
    training = recipe.training
    changes = [
        (not training.gradient_checkpointing, "training.gradient_checkpointing=true"),
        (recipe.quantization is None, "quantization.quant_type=nf4"),
        (not training.optim.startswith("paged"), "training.optim=paged_adamw_8bit"),
        (torch.cuda.is_available() and not training.activation_offloading, "training.activation_offloading=true"),
        (bool(recipe.lora.modules_to_save), "lora.modules_to_save=[]"),
        (True, f"data.max_length={recipe.data.max_length // 2}"),
    ]
    settings = " ".join(f"--set {setting}" for is_open, setting in changes if is_open)
    return f"one or more of {settings} (`qlora plan RECIPE --fit` says what each saves)"
