"""Conditions of a resume: what must be unchanged, and the checkpoint to continue from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from qlora_cli import console
from qlora_cli.errors import IdentityError
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.schema import Recipe, TrainingSection
from qlora_cli.run.checkpoints import Checkpoint, newest_whole
from qlora_cli.run.claim import foreign, mark, refuse_held, refuse_place
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.folders import named, refuse_foreign
from qlora_cli.run.manifest import read_manifest, recorded_fingerprint
from qlora_cli.run.metrics import forget_after, read_metrics
from qlora_cli.run.replaced_run import set_aside
from qlora_cli.train.checkpoint.identity import changed_keys, checkpoint_identity
from qlora_cli.train.processes.launch import Launch


def prepare_run_directory(run: RunDirectory, *, overwrite: bool) -> None:
    """Make sure that a new run can be written here; an earlier one is set aside until the new one is started.

    Raises:
        ArgumentError: if an earlier run is there and `overwrite` is not given, or something else would be lost.
    """
    refuse_foreign_parts(run)
    if not overwrite:
        refuse_held(run)
    if not run.is_started:
        return
    refuse_place(run)
    if others := foreign(run):
        console.note(f"kept in {run.path}, not part of the run: {named(others)}")
    set_aside(run)
    mark(run)


def refuse_foreign_parts(run: RunDirectory) -> None:
    """Make sure, before any work is done, that no foreign file is where the session will write.

    Raises:
        ArgumentError: naming what it is.
    """
    for folder in (run.adapter_path, run.residual_path, run.integers_path):
        refuse_foreign(folder, hint="move it away, or choose another --run-dir")


def find_checkpoint(run: RunDirectory, recipe: Recipe) -> Checkpoint | None:
    """The newest intact checkpoint; None when the run stopped before its first one, or never began, and starts over.

    Raises:
        IdentityError: if the recipe now means another training.
    """
    refuse_foreign_parts(run)
    if not run.is_started:
        console.note(f"there is no run in {run.path} yet: it starts at the beginning")
        return None
    before = load_recipe(run.recipe_path)
    changed = changed_keys(before, recipe)
    if changed:
        listed = "; ".join(f"{key}: {before!r} -> {after!r}" for key, before, after in changed)
        raise IdentityError(
            f"the recipe has changed since the run was started: {listed}",
            place=str(run.recipe_path),
            hint=f"undo the change, resume with `{run.resume_command}`, or start a new run with another --run-dir",
        )
    checkpoint, skipped = newest_whole(run.checkpoints_path, _expected_identity(run, recipe))
    for damaged, problem in skipped:
        console.warn(f"checkpoint {damaged.path} is passed over: {problem}")
    forget_after(run.metrics_path, checkpoint.step if checkpoint else -1)
    _tell_of_new_end(run, before.training, recipe.training, checkpoint)
    return checkpoint


def _expected_identity(run: RunDirectory, recipe: Recipe) -> dict[str, Any]:
    """Facts that a checkpoint of this run must hold, so that one of another run is not taken for it."""
    if not run.manifest_path.exists():  # killed before it was written, and so before the first checkpoint
        return {}
    manifest = read_manifest(run)
    facts = {name: values for name, values in manifest.items() if isinstance(values, dict) and "fingerprint" in values}
    return checkpoint_identity(recipe, facts)


def _tell_of_new_end(
    run: RunDirectory, before: TrainingSection, after: TrainingSection, checkpoint: Checkpoint | None
) -> None:
    (old, unit), (new, _) = before.length, after.length
    if new == old:
        return
    stays = f"; {run.adapter_path} stays as it is until then" if run.is_finished else ""
    console.note(f"the run now ends after {new:g} {unit} instead of {old:g}{stays}")
    if checkpoint is not None and after.lr_scheduler_type != "constant":
        schedule = f"the {after.lr_scheduler_type} schedule of {new:g} {unit}"
        console.note(f"from step {checkpoint.step + 1} on the learning rate follows {schedule}")


def check_same_number(run: RunDirectory, num_processes: int) -> None:
    """Refuse to continue with more or fewer processes: each has its own rows and its own dropout.

    Raises:
        IdentityError: naming both numbers.
    """
    started_with = read_manifest(run).get("num_processes", 1)
    if started_with != num_processes:
        raise IdentityError(
            f"the run was started with {_processes(started_with)} and cannot continue with {_processes(num_processes)}",
            place=str(run.manifest_path),
            hint=f"`{replace(run, launcher=Launch(world_size=started_with).command).resume_command}`",
        )


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def check_same_identity(run: RunDirectory, facts: dict[str, dict[str, Any]]) -> None:
    """Refuse to continue when the base, the tokenizer or the data are no longer what the run started on.

    Args:
        run: the run to continue.
        facts: as written into the manifest: section -> values, of which `fingerprint` is compared.

    Raises:
        IdentityError: naming the first that differs, or that the manifest does not hold.
    """
    for section, values in facts.items():
        if recorded_fingerprint(run, section) != values["fingerprint"]:
            raise IdentityError(
                f"the {section} has changed since the run was started",
                place=str(run.manifest_path),
                hint=f"bring back the {section} as it was, or start a new run with another --run-dir",
            )


def is_evaluation_missing(checkpoint: Path, arguments: TrainingArguments, metrics_path: Path) -> bool:
    """Whether an evaluation belongs to the step of a checkpoint and its line is not there.

    At the end of an epoch the checkpoint comes first: what was trained must not depend on what is measured.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if not _belongs_to(state, arguments):
        return False
    return not any(line["step"] == state.global_step and "eval_loss" in line for line in read_metrics(metrics_path))


def _belongs_to(state: TrainerState, arguments: TrainingArguments) -> bool:
    is_last = state.global_step >= state.max_steps
    if arguments.eval_strategy == IntervalStrategy.STEPS:
        return is_last or state.global_step % int(arguments.eval_steps) == 0
    if arguments.eval_strategy == IntervalStrategy.EPOCH:
        return is_last or (state.epoch is not None and float(state.epoch).is_integer())
    return False
