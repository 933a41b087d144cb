"""What is refused before the libraries are loaded, which takes seconds: what the recipe alone shows to be missing."""

from __future__ import annotations

from qlora_cli.data.read.places import refuse_missing
from qlora_cli.model.at_hand import refuse_missing_folder
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.claim import is_ours, refuse_held
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.disk_errors import storage_faults


def refuse_at_once(recipe: Recipe, run: RunDirectory, *, resume: bool, overwrite: bool) -> None:
    """Refuse a session whose base or data are not there, or whose directory holds another run.

    All of it is looked at again when it is used.

    Raises:
        RecipeError: if the base can only be a folder of this machine and is not there.
        ArgumentError: if the directory holds a run, and neither `resume` nor `overwrite` is given.
        DataError: if data can only be a file or folder of this machine and are not there.
        ResourceError: if the disk refuses to be read.
    """
    refuse_missing_folder(recipe.model.base_model)
    if resume:
        return
    with storage_faults(run):
        if not overwrite and is_ours(run):
            refuse_held(run)
    refuse_missing(recipe.data)
