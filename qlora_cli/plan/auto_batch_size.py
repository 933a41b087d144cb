"""A number in place of `per_device_train_batch_size: auto`: as many of a step's rows in a pass as fit."""

from __future__ import annotations

from math import ceil

from qlora_cli.plan.fit import search
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace_cache import Tracer


def with_auto_batch_size(request: PlanRequest, memory_bytes: int | None, tracer: Tracer | None = None) -> PlanRequest:
    """The request with its rows shared out over as few passes as the memory allows, evenly; others as they are.

    Args:
        request: the step.
        memory_bytes: what the device has; None where it is not known, and all rows are taken in one pass.
        tracer: what has been traced already.

    Raises:
        RecipeError: if the base cannot be built or its step cannot be traced.
    """
    training = request.recipe.training
    if training.per_device_train_batch_size != "auto":
        return request
    most = num_rows = training.rows_per_step
    if memory_bytes is not None:
        tracer = tracer or Tracer()
        found = search(lambda rows: tracer.device_bytes(_with_rows(request, rows)), memory_bytes, num_rows)
        most = found or 1  # if not even one row fits, report the need of one row
    return _with_rows(request, even_split(num_rows, most))


def even_split(num_rows: int, most: int) -> int:
    """Rows of each pass when as few passes as `most` allows share them out evenly.

    >>> even_split(16, 15), even_split(16, 6), even_split(16, 16)
    (8, 6, 16)
    """
    return ceil(num_rows / ceil(num_rows / most))


def _with_rows(request: PlanRequest, rows: int) -> PlanRequest:
    passes = ceil(request.recipe.training.rows_per_step / rows)
    return request.changed(
        {"training.per_device_train_batch_size": rows, "training.gradient_accumulation_steps": passes}
    )
