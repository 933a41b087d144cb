"""What a resumed run must find unchanged, and where it goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qlora_cli import console
from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.checkpoints import Checkpoint, newest_whole
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest, recorded_fingerprint
from qlora_cli.run.metrics import forget_after
from qlora_cli.train.launch import Launch

MAY_CHANGE = (
    "name",
    "eval.",
    "tracking.",
    "training.logging_steps",
    "training.save_strategy",
    "training.save_steps",
    "training.save_total_limit",
)
"""Keys that do not touch what is computed; a trailing dot stands for a whole section."""


def clear_way(run: RunDirectory, *, overwrite: bool) -> None:
    """Make sure that a new run can be written here; nothing is written yet.

    Raises:
        ArgumentError: if an earlier run is there and `overwrite` is not given.
    """
    if not run.is_started:
        return
    if not overwrite:
        state = "a finished run" if run.is_finished else "an unfinished run"
        raise ArgumentError(
            f"run directory '{run.path}' already holds {state}",
            hint="go on with --resume, start over with --overwrite, or choose another --run-dir",
        )
    run.clear()


def find_resume_point(run: RunDirectory, recipe: Recipe) -> Checkpoint | None:
    """The newest whole checkpoint; None when the run stopped before its first one and starts over.

    Raises:
        ArgumentError: if no run was started here.
        IdentityError: if the recipe now means another training.
    """
    if not run.is_started:
        raise ArgumentError(f"there is no run in '{run.path}' to resume", hint="leave out --resume to start it")
    changed = changed_keys(load_recipe(run.recipe_path), recipe)
    if changed:
        listed = "; ".join(f"{key}: {before!r} -> {after!r}" for key, before, after in changed)
        raise IdentityError(
            f"the recipe has changed since the run was started: {listed}",
            place=str(run.recipe_path),
            hint=f"undo the change, resume with `{run.resume_command}`, or start a new run with another --run-dir",
        )
    checkpoint, skipped = newest_whole(run.checkpoints_path)
    for damaged, problem in skipped:
        console.warn(f"checkpoint {damaged.path} is passed over: {problem}")
    forget_after(run.metrics_path, checkpoint.step if checkpoint else -1)
    return checkpoint


def check_same_number(run: RunDirectory, num_processes: int) -> None:
    """Refuse to go on with more or fewer processes: each has its own rows and its own dropout.

    Raises:
        IdentityError: naming both numbers.
    """
    started_with = read_manifest(run).get("num_processes", 1)
    if started_with != num_processes:
        raise IdentityError(
            f"the run was started with {_processes(started_with)} and cannot go on with {_processes(num_processes)}",
            place=str(run.manifest_path),
            hint=f"`{replace(run, launcher=Launch(num_ranks=started_with).command).resume_command}`",
        )


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def changed_keys(before: Recipe, after: Recipe) -> list[tuple[str, Any, Any]]:
    """Keys whose value differs and that a resumed run must not change, with both values."""
    old, new = _flat(before.model_dump()), _flat(after.model_dump())
    return [
        (key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots.

    >>> _flat({"lora": {"r": 8}, "name": "a"})
    {'lora.r': 8, 'name': 'a'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check_same_ground(run: RunDirectory, facts: dict[str, dict[str, Any]]) -> None:
    """Refuse to go on when the base, the tokenizer or the data are no longer what the run started on.

    Args:
        run: the run to go on with.
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
