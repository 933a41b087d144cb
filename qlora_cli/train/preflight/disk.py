"""Room on the disk, before the first step: what the run will write against what is free."""

from __future__ import annotations

import shutil

from peft import PeftModel

from qlora_cli import console
from qlora_cli.console import SIZE_UNITS, size_in_words
from qlora_cli.errors import ResourceError
from qlora_cli.model.experts.packed import trained_and_all
from qlora_cli.model.integer.linear import num_integer_weights
from qlora_cli.plan.disk import Disk, TrainedTensor, disk_of
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory

SMALL_FILES_BYTES = 32 * 10**6
"""Allowance for what is not counted: tokenizer beside the adapter, checkpoint.json, random states, metrics, logs."""


def required_disk(recipe: Recipe, model: PeftModel) -> Disk:
    """Disk space of a run that trains `model`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _, num_all = trained_and_all(model)
    num_base = num_all - sum(parameter.numel() for parameter in trained)
    return disk_of(
        recipe,
        (TrainedTensor(each.numel(), each.element_size()) for each in trained),
        num_base,
        num_integer_weights(model),
    )


def check_disk_space(disk: Disk, run: RunDirectory, *, force: bool) -> None:
    """Compare what the run will write with what is free where it is written.

    Checkpoints that are there already will make room for newer ones, and an earlier run for this one. The merged model
    may go elsewhere, so that it does not fit is only said.

    Raises:
        ResourceError: if checkpoints and adapter do not fit, unless `force` is given.
    """
    free = shutil.disk_usage(run.path).free
    freed = sum(
        path.stat().st_size
        for folder in (run.checkpoints_path, run.earlier_path)
        for path in folder.rglob("*")
        if path.is_file()
    )
    written = disk.checkpoints_bytes + disk.adapter_bytes + SMALL_FILES_BYTES
    needed = written - freed
    if needed > free:
        problem = (
            f"the run will write {three_digits(written)} ({disk.num_checkpoints} checkpoints of "
            f"{three_digits(disk.checkpoint_bytes)}, an adapter of {three_digits(disk.adapter_bytes)}, "
            f"{three_digits(SMALL_FILES_BYTES)} of small files); {three_digits(free)} are free"
            + (f" and {three_digits(freed)} of earlier checkpoints will be" if freed else "")
            + f": {three_digits(needed - free)} too little"
        )
        if not force:
            hint = f"make room{_fewer(disk)}; --force trains anyway"
            raise ResourceError(problem, place=str(run.path), hint=hint)
        console.warn(problem)
    elif needed + disk.merged_bytes > free:
        console.warn(
            f"after training {size_in_words(free - needed)} will be free, and the merged model takes "
            f"{size_in_words(disk.merged_bytes)}; `qlora merge --out` can write it to another disk"
        )


def three_digits(num_bytes: int) -> str:
    """A number of bytes in decimal units, exact enough for sums to be checked.

    >>> three_digits(999), three_digits(1_032_000_000), three_digits(32_000_000), three_digits(999_999)
    ('999 bytes', '1.03 GB', '32.0 MB', '1.00 MB')
    """
    value, power = float(num_bytes), 0
    while value >= 999.5 and power < len(SIZE_UNITS) - 1:
        value, power = value / 1000, power + 1
    decimals = 0 if not power or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{decimals}f} {SIZE_UNITS[power]}"


def _fewer(disk: Disk) -> str:
    return ", or --set training.save_total_limit=1" if disk.num_checkpoints > 2 else ""
