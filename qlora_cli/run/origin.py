"""Directory in which a run was started: its recipe's relative paths are found from there too, even after a move."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qlora_cli.errors import IdentityError
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.manifest import read_manifest

SECTION = "started_in"
"""Of the manifest."""


def origin_of(run: RunDirectory) -> dict[str, dict[str, str]]:
    """Section of the manifest with the place in which the run is started."""
    return {SECTION: {"directory": str(Path.cwd()), "run": str(run.path.absolute())}}


def located(recipe: Recipe, run: RunDirectory) -> Recipe:
    """The recipe with each relative path that leads nowhere from here replaced by the absolute one, if that is known.

    Looked for is first in the directory in which the run was started, then in the one that lies to the run directory
    as that one did, for a project that has moved.
    """
    roots = _roots(run)
    if not roots:
        return recipe

    def find(text: str) -> str:
        path = Path(text).expanduser()
        if path.is_absolute() or path.exists():
            return text
        return next((str(root / path) for root in roots if (root / path).exists()), text)

    def find_each(sections: Any) -> Any:
        return sections and tuple(each.model_copy(update={"path": find(each.path)}) for each in sections)

    template = recipe.model.chat_template
    model = {"base_model": find(recipe.model.base_model), "chat_template": template and find(template)}
    data = {"train": find_each(recipe.data.train), "eval": find_each(recipe.data.eval)}
    tasks = tuple(
        each.model_copy(update={"json_schema": each.json_schema and find(each.json_schema)})
        for each in find_each(recipe.eval.tasks) or ()
    )
    measured = {"tasks": tasks, "general_text": find(recipe.eval.general_text)}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=model),
            "data": recipe.data.model_copy(update=data),
            "eval": recipe.eval.model_copy(update=measured),
        }
    )


def _roots(run: RunDirectory) -> list[Path]:
    try:
        recorded = read_manifest(run).get(SECTION)
    except IdentityError:
        return []
    directory, place = (recorded.get(key) if isinstance(recorded, dict) else None for key in ("directory", "run"))
    if not isinstance(directory, str) or not isinstance(place, str):
        return []
    moved = run.path.absolute() / os.path.relpath(directory, place)
    return list(dict.fromkeys((Path(directory), Path(os.path.normpath(moved)))))
