"""Checks of what a recipe names on this machine, without loading it; and a list of what only the Hub knows."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from qlora_cli.hub import is_hub_id
from qlora_cli.recipe.base_files import check_base, config_here, default_beyond, is_base_on_hub
from qlora_cli.recipe.schema import Recipe
from qlora_cli.recipe.stored_rules import recipe_as_stored
from qlora_cli.recipe.tree import PathPart, path_text
from qlora_cli.recipe.written import Conflict, RawRecipe, at, conflict

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".json.gz", ".jsonl.gz", ".csv.gz")

MAX_FOLDERS = 1000
"""Number of files that are looked through for a data file."""

DATA_KEYS = ("data.train", "data.eval", "eval.tasks")


def check_local(written: RawRecipe) -> list[Conflict]:
    """Everything on this machine that would keep the recipe from running."""
    return [*check_base(written), *_check_data(written), *_check_template(written)]


def unchecked(recipe: Recipe) -> list[str]:
    """The models and datasets that are on the Hub at best, so that nothing is known of them."""
    names = [f"model '{recipe.model.base_model}'"] if is_base_on_hub(recipe.model.base_model) else []
    paths = [source.path for source in (*recipe.data.train, *(recipe.data.eval or ()))]
    paths += [task.path for task in recipe.eval.tasks]
    return names + list(dict.fromkeys(f"data '{path}'" for path in paths if is_on_hub(path)))


def recipe_as_stored_here(recipe: Recipe) -> Recipe:
    """The recipe with `quantization` as its base decides it, where that is on this machine."""
    config = config_here(recipe.model.base_model, recipe.model.revision)
    return recipe if config is None else recipe_as_stored(recipe, config)


def default_notes(recipe: Recipe, *, is_length_written: bool) -> list[str]:
    """Remarks on values that nobody wrote."""
    positions = default_beyond(recipe.model.base_model, recipe.data.max_length)
    if is_length_written or positions is None:
        return []
    return [
        f"data.max_length is {recipe.data.max_length} where it is not written, and the base has {positions:,} "
        f"positions: write `max_length: {positions}`"
    ]


def _check_data(written: RawRecipe) -> Iterator[Conflict]:
    for key in DATA_KEYS:
        for path, name in _named(written, key):
            if fault := _fault_of(name):
                text, hint = fault
                yield Conflict(path, f"'{path_text(path)}: {name}' {text}", hint)


def _check_template(written: RawRecipe) -> Iterator[Conflict]:
    key = "model.chat_template"
    name = at(written, key)
    if isinstance(name, str) and not Path(name).is_file():
        hint = "give the path of a Jinja file, or leave the key out"
        yield conflict(key, (), f"'{key}: {name}' is not there", hint)


def _named(written: RawRecipe, key: str) -> Iterator[tuple[tuple[PathPart, ...], str]]:
    """The path of each source under a key, with where it is written."""
    value: Any = at(written, key)
    path: tuple[PathPart, ...] = tuple(key.split("."))
    items = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
    for index, item in items:
        place = path if index is None else (*path, index)
        if isinstance(item, dict):
            place, item = (*place, "path"), item.get("path")
        if isinstance(item, str) and item:
            yield place, item


def is_on_hub(name: str) -> bool:
    if "://" in name:
        return True
    return is_hub_id(name) and not name.lower().endswith(DATA_SUFFIXES) and not Path(name).expanduser().exists()


def _fault_of(name: str) -> tuple[str, str] | None:
    """The fault of a file or folder of data, and the remedy; None where it has none, or is on the Hub."""
    if "://" in name:
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder_fault(path)
    if path.exists():
        return _file_fault(path)
    if any(letter in name for letter in "*?["):
        if any(glob.iglob(str(path), recursive=True)):
            return None
        return "matches no file", f"paths start at the current directory, {Path.cwd()}"
    return None if is_on_hub(name) else ("is not there", _missing_hint(path))


def _folder_fault(folder: Path) -> tuple[str, str] | None:
    for _, _, names in islice(os.walk(folder), MAX_FOLDERS):
        if any(name.lower().endswith(DATA_SUFFIXES) for name in names):
            return None
    return "is a folder without a data file", f"put files there: {', '.join(DATA_SUFFIXES)}"


def _file_fault(path: Path) -> tuple[str, str] | None:
    if not path.name.lower().endswith(DATA_SUFFIXES):
        return "is not a kind of file that is read", f"rename or convert it to one of: {', '.join(DATA_SUFFIXES)}"
    if path.is_file() and path.stat().st_size == 0:
        return "is empty", "give a file with at least one row"
    if not os.access(path, os.R_OK):
        return "may not be read", f"check its permissions: `ls -l {path}`"
    return None


def _missing_hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f"folder '{path.parent}' does not exist (paths start at the current directory, {Path.cwd()})"
    close = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
    if close:
        return "did you mean " + " or ".join(f"'{path.parent / name}'" for name in close) + "?"
    return f"nothing of a like name is in {path.parent.resolve()} (paths start at the current directory)"
