"""Where the recipes and config parts that come with qlora are: in a checkout, or beside an installed package."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

from qlora_cli.errors import ArgumentError, ResourceError


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with qlora, and what its first comment says of it."""

    name: str
    path: Path
    purpose: str
    hardware: str
    time: str
    expected: str


def shipped_root() -> Path:
    """The folder that holds `configs/` and `recipes/`.

    Raises:
        ResourceError: if the installation lacks them.
    """
    beside_package = Path(__file__).resolve().parents[2]
    candidates = [
        beside_package,  # a checkout
        Path(sysconfig.get_path("data")) / "share" / "qlora",  # a wheel in a virtual environment
        beside_package / "share" / "qlora",  # pip install --target
        Path(sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))) / "share" / "qlora",
    ]
    for root in candidates:
        if (root / "configs" / "models").is_dir() and (root / "recipes").is_dir():
            return root
    places = ", ".join(str(root) for root in candidates)
    raise ResourceError(f"the shipped recipes are in none of {places}", hint="install qlora again with pip")


def list_shipped() -> list[ShippedRecipe]:
    """Every shipped recipe, by name."""
    return [_read_header(path) for path in sorted((shipped_root() / "recipes").glob("*.yaml"))]


def find_shipped(name: str) -> ShippedRecipe:
    """The shipped recipe of that name, with or without `.yaml`.

    Raises:
        ArgumentError: if there is none.
    """
    recipes = {recipe.name: recipe for recipe in list_shipped()}
    if name.removesuffix(".yaml") not in recipes:
        raise ArgumentError(f"no shipped recipe is named '{name}'", hint=f"choose one of {', '.join(recipes)}")
    return recipes[name.removesuffix(".yaml")]


def _read_header(path: Path) -> ShippedRecipe:
    """Read the leading comment: the purpose, then `# hardware:`, `# time:` and `# expected:` lines.

    A line indented further continues the one before it.
    """
    texts = {"purpose": "", "hardware": "", "time": "", "expected": ""}
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
