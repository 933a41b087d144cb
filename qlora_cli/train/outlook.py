"""What a step will take of this machine's memory, before the model is loaded; and what it has taken in the end."""

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
from qlora_cli.plan.automatic import with_rows_that_fit
from qlora_cli.plan.bill import Needs, context_on
from qlora_cli.plan.device import Device
from qlora_cli.plan.host_memory import available_bytes
from qlora_cli.plan.report import this_gpu
from qlora_cli.plan.shape import PlanRequest
from qlora_cli.plan.tracer import Tracer
from qlora_cli.recipe.schema import Recipe
from qlora_cli.train.memory import settings_that_save


@dataclass(frozen=True)
class Outlook:
    """A step of the recipe on this machine."""

    rows_at_once: int
    needs: Needs | None = None
    """What each process takes; None where the step was not traced."""

    @classmethod
    def untraced(cls, recipe: Recipe) -> Outlook:
        """All rows of a pass at once, until memory runs out."""
        return cls(recipe.training.rows_at_once)


def foresee(recipe: Recipe, *, num_processes: int = 1, force: bool = False) -> Outlook:
    """Trace a step, and see whether it fits into the memory that is free now.

    A base whose step cannot be traced is trained all the same: what is wrong with it, training says in its own words.

    Args:
        recipe: what is to be trained.
        num_processes: that share the host's memory where there is no GPU.
        force: say that it does not fit, and go on.

    Raises:
        RecipeError: if the base's configuration cannot be found or read.
        ResourceError: if it does not fit.
    """
    device = _this_device(num_processes)
    memory = _free_bytes(device)
    tracer = Tracer()
    asked = PlanRequest(recipe, read_config(recipe.model), device)
    try:
        request = with_rows_that_fit(asked, memory, tracer)
        needs = tracer.needs(request)
    except RecipeError as error:
        console.note(f"memory is not planned: {error.problems[0].text}")
        return Outlook.untraced(recipe)
    if memory is not None and needs.device_bytes > memory:
        _refuse(recipe, needs.device_bytes, memory, force=force)
    if recipe.training.per_device_train_batch_size == "auto":
        console.note(
            f"batch size: {request.batch_size} of the {recipe.training.rows_per_step} rows of a step at once, "
            f"planned to take {needs.device_bytes / GIB:.1f} GiB"
        )
    return Outlook(request.batch_size, needs)


def _this_device(num_processes: int) -> Device:
    is_gpu = pick_device().type == "cuda"
    return replace(this_gpu().device if is_gpu else Device("cpu"), num_gpus=num_processes)


def _free_bytes(device: Device) -> int | None:
    """What this process may take, what it holds of a GPU already included; None where it is not known."""
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
        console.warn(f"{problem}; it is tried all the same")
        return
    raise ResourceError(
        problem,
        hint=f"{_automatic_batch(recipe)}{settings_that_save(recipe)}; --force tries it all the same",
    )


def _automatic_batch(recipe: Recipe) -> str:
    training = recipe.training
    if training.rows_at_once == 1:
        return ""
    rows = f"--set training.gradient_accumulation_steps={training.rows_per_step}"
    return f"--set training.per_device_train_batch_size=auto {rows}, then "


def compared(needs: Needs | None, measured: Mapping[str, int]) -> dict[str, Any]:
    """Predicted and measured bytes, as the manifest holds them."""
    predicted = {} if needs is None else {"allocated": needs.allocated_bytes, "reserved": needs.reserved_bytes}
    return {"predicted_bytes": predicted, "measured_bytes": dict(measured)}
