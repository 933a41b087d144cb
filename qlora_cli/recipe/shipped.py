"""Recipes and config parts that come with qlora: at the root of a checkout, in an installed package inside it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from qlora_cli.errors import ArgumentError, ResourceError

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with qlora, and what its first comment says of it."""

    name: str
    path: Path
    purpose: str
    hardware: str
    time: str
    expected: str
    first: str
    """Command that makes its base model; empty where the base is on the Hub."""


def shipped_root() -> Path:
    """The folder that holds `configs/` and `recipes/`.

    Raises:
        ResourceError: if the installation lacks them.
    """
    candidates = [PACKAGE / "shipped", PACKAGE.parent]  # where pyproject.toml puts them in a wheel; a checkout
    for root in candidates:
        if (root / "configs" / "models").is_dir() and (root / "recipes").is_dir():
            return root
    places = " or ".join(str(root) for root in candidates)
    raise ResourceError(
        f"the shipped recipes are not in {places}",
        hint="install qlora again, from its wheel or with `pip install .` in its repository",
    )


def list_shipped() -> list[ShippedRecipe]:
    """Every shipped recipe, by name."""
    return [_read_header(path) for path in _files()]


def find_shipped(name: str) -> ShippedRecipe:
    """The shipped recipe of that name, with or without `.yaml`.

    Raises:
        ArgumentError: if there is none.
    """
    recipes = {recipe.name: recipe for recipe in list_shipped()}
    if name.removesuffix(".yaml") not in recipes:
        raise ArgumentError(f"no shipped recipe is named '{name}'", hint=f"choose one of {', '.join(recipes)}")
    return recipes[name.removesuffix(".yaml")]


def recipe_file(given: Path) -> Path:
    """The file that `given` names: itself; or a shipped recipe, if that is its name and no such file is here.

    Raises:
        ArgumentError: if the name could also mean a recipe file here, such as an edited copy.
    """
    if os.path.isfile(given) or given.parent != Path():
        return given
    shipped = {path.stem: path for path in _files()}.get(given.name, given)
    for suffix in (".yaml", ".yml"):
        own = Path(f"{given}{suffix}")
        if shipped != given and os.path.isfile(own):
            raise ArgumentError(
                f"'{given}' could be the file {own} here, or the recipe of that name that comes with qlora",
                hint=f"name one of them in full: {own} or {shipped}",
            )
    return shipped


def close_shipped(missing: Path) -> str | None:
    """The name of a shipped recipe that may be meant by a recipe file that is missing.

    >>> close_shipped(Path("recipes/smoke.yaml")), close_shipped(Path("guanacco")), close_shipped(Path("mine.yaml"))
    ('smoke', 'guanaco', None)
    """
    name = missing.name.removesuffix(".yaml").removesuffix(".yml")
    return next(iter(get_close_matches(name, [path.stem for path in _files()], n=1, cutoff=0.75)), None)


def command_for_base(base_model: str) -> str | None:
    """The command that makes `base_model`, if it is the base of a shipped recipe that is made, not downloaded."""
    for recipe in list_shipped():
        if shlex.split(recipe.first)[2:3] == [os.path.normpath(base_model)]:  # qlora tiny FOLDER
            return recipe.first
    return None


def _files() -> list[Path]:
    return sorted((shipped_root() / "recipes").glob("*.yaml"))


def _read_header(path: Path) -> ShippedRecipe:
    """Read the leading comment: the purpose, then lines such as `# hardware:`, one for each field.

    A line indented further continues the one before it.
    """
    texts = {"purpose": "", "hardware": "", "time": "", "expected": "", "first": ""}
    label = "purpose"
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        start, colon, rest = line.removeprefix("#").strip().partition(":")
        if start.startswith("yaml-language-server"):
            continue
        is_labelled = bool(colon) and start in texts
        label = start if is_labelled else label
        texts[label] = f"{texts[label]} {rest.strip() if is_labelled else line.removeprefix('#').strip()}".strip()
    return ShippedRecipe(name=path.stem, path=path, **texts)
