"""Room on the disk, before the first step: what the run will write against what is free."""

from __future__ import annotations

import shutil

from peft import PeftModel

from qlora_cli import console
from qlora_cli.console import size_in_words
from qlora_cli.errors import ResourceError
from qlora_cli.plan.disk import Disk, TrainedTensor, disk_of
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory

SMALL_FILES_BYTES = 32 * 10**6
"""Taken for what is not counted: the tokenizer beside the adapter, seals, random states, metrics, logs."""


def disk_needed(recipe: Recipe, model: PeftModel) -> Disk:
    """What a run writes that trains `model`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _, num_all = model.get_nb_trainable_parameters()
    num_base = num_all - sum(parameter.numel() for parameter in trained)
    return disk_of(recipe, (TrainedTensor(each.numel(), each.element_size()) for each in trained), num_base)


def check_space(disk: Disk, run: RunDirectory, *, force: bool) -> None:
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
    needed = disk.checkpoints_bytes + disk.adapter_bytes + SMALL_FILES_BYTES - freed
    if needed > free:
        problem = (
            f"the run will write {size_in_words(needed)} ({disk.num_checkpoints} checkpoints of "
            f"{size_in_words(disk.checkpoint_bytes)}, an adapter of {size_in_words(disk.adapter_bytes)}), and "
            f"{size_in_words(free)} are free"
        )
        if not force:
            hint = f"make room{_fewer(disk)}; --force trains all the same"
            raise ResourceError(problem, place=str(run.path), hint=hint)
        console.warn(problem)
    elif needed + disk.merged_bytes > free:
        console.warn(
            f"after training {size_in_words(free - needed)} will be free, and the merged model takes "
            f"{size_in_words(disk.merged_bytes)}; `qlora merge --out` can write it to another disk"
        )


def _fewer(disk: Disk) -> str:
    return ", or --set training.save_total_limit=1" if disk.num_checkpoints > 2 else ""
