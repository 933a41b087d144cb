"""A recipe file and the parts that it extends, laid over one another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qlora_cli.recipe.mapping import tree_of
from qlora_cli.recipe.secret_values import without_secrets
from qlora_cli.recipe.shipped import close_shipped, shipped_root
from qlora_cli.recipe.tree import Node, PlacedProblem, RecipePlace, Unreadable, merge, problem_at
from qlora_cli.recipe.yaml_text import MAX_TEXT_BYTES, parse_yaml

MAPPING_PATH = Path("recipe")
"""Stands for the file that a mapping does not have: in error messages, and as the run's name where it has none."""

MAX_CHAIN = 100
"""Files that lead to one another; each takes a few frames of Python's stack."""


class _UnusableFileError(Exception):
    """A file that cannot be laid over others at all; carries the problems that say why."""

    def __init__(self, *problems: PlacedProblem) -> None:
        super().__init__()
        self.problems = problems


@dataclass
class Layers:
    """Reads recipe files, each once, and collects what is wrong with them."""

    problems: list[PlacedProblem] = field(default_factory=list)
    is_whole: bool = True
    """False once a file could not be used; its keys would then wrongly look missing."""
    _read: dict[str, Node] = field(default_factory=dict)
    _parts: dict[str, list[str]] = field(default_factory=dict)
    """File -> the files that it extends, as places show them."""

    def files(self, root: Node) -> list[str]:
        """The files that `root` was laid together from, the uppermost first."""
        found: dict[str, None] = {}
        ahead = [root.place.file]
        while ahead:
            file = ahead.pop()
            if file not in found:
                found[file] = None
                ahead += self._parts.get(file, [])
        return list(found)

    def load(self, path: Path, chain: tuple[Path, ...] = (), named_at: RecipePlace | None = None) -> Node:
        """The tree of `path` laid over those of its `extends`; an empty one where the file cannot be used.

        Args:
            path: file to read, as places should show it.
            chain: the files that led here, outermost first.
            named_at: where the innermost of them names this one.
        """
        identity = os.path.realpath(path)
        try:
            if identity in [os.path.realpath(outer) for outer in chain]:
                circle = " -> ".join(str(file) for file in (*chain, path))
                text = f"'extends' goes in a circle: {circle}"
                raise _UnusableFileError(
                    problem_at(named_at or RecipePlace(str(path), 1), text, "take one of them out")
                )
            if len(chain) > MAX_CHAIN:
                text = f"'extends' leads from file to file more than {MAX_CHAIN} times"
                raise _UnusableFileError(problem_at(named_at or RecipePlace(str(path), 1), text, "join some of them"))
            if identity not in self._read:
                self._read[identity] = self._load_new(path, chain, named_at)
            return self._read[identity]
        except _UnusableFileError as unusable:
            self.problems += unusable.problems
            self.is_whole = False
            return Node({}, RecipePlace(str(path), 1))

    def _load_new(self, path: Path, chain: tuple[Path, ...], named_at: RecipePlace | None) -> Node:
        parsed = parse_yaml(_read_text(path, named_at), str(path))
        root, secrets = without_secrets(parsed.root) if parsed.root else (None, [])
        problems = parsed.problems + secrets
        keys = root.value if root else None
        if not isinstance(keys, dict):
            raise _UnusableFileError(*(problems or [_not_a_recipe(path, root)]))
        self.problems += problems
        return self._with_parts(keys, path, chain, RecipePlace(str(path), 1))

    def load_mapping(self, recipe: Mapping[str, Any]) -> Node:
        """The tree of a mapping laid over those of its `extends`, whose paths start at the working directory."""
        place = RecipePlace(str(MAPPING_PATH), 0)
        tree, problems = tree_of(recipe, place)
        root, secrets = without_secrets(tree)
        self.problems += problems + secrets
        assert isinstance(root.value, dict)  # made from a mapping
        return self._with_parts(root.value, MAPPING_PATH, (), place)

    def _with_parts(self, keys: dict[str, Node], path: Path, chain: tuple[Path, ...], place: RecipePlace) -> Node:
        tree = Node({}, place)
        for target in self._targets(keys.get("extends")):
            part = self.load(_locate(path, str(target.value)), (*chain, path), target.place)
            self._parts.setdefault(str(path), []).append(part.place.file)
            tree = merge(tree, part)
        own_keys = {key: child for key, child in keys.items() if key != "extends"}
        return merge(tree, Node(own_keys, place))

    def _targets(self, extends: Node | None) -> list[Node]:
        """The paths that an `extends` key names, each with its place."""
        if extends is None:
            return []
        items = extends.value if isinstance(extends.value, list) else [extends]
        targets = []
        for item in items:
            if isinstance(item.value, str) and item.value:
                targets.append(item)
                continue
            self.is_whole = False
            if not isinstance(item.value, Unreadable):
                text = f"extends must be a path or a list of paths, not {item.plain()!r}"
                hint = "for example `extends: configs/models/llama-3.1-8b.yaml`"
                self.problems.append(problem_at(item.place, text, hint))
        return targets


def _read_text(path: Path, named_at: RecipePlace | None) -> str:
    """The text of a recipe file; faults of the file itself are reported where `extends` names it."""
    place = named_at or RecipePlace(str(path), 0)
    name = f"'{path}' in 'extends'" if named_at else "this recipe"
    if named_at and path.exists() and not path.is_file() and not path.is_dir():
        text = f"{name} is not a file, but a pipe or a device"  # which might be read for ever
        raise _UnusableFileError(problem_at(place, text, "name a .yaml file"))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        hint = _close_files(path, is_part=named_at is not None)
        raise _UnusableFileError(problem_at(place, f"{name} does not exist", hint)) from None
    except IsADirectoryError:
        raise _UnusableFileError(problem_at(place, f"{name} is a folder", "name a .yaml file in it")) from None
    except OSError as error:
        text = f"{name} cannot be read: {error.strerror}"
        raise _UnusableFileError(problem_at(place, text, "check its path and permissions")) from None
    if len(raw) > MAX_TEXT_BYTES:
        size = f"{path.stat().st_size:,}" if path.is_file() else "more"
        text = f"{name} has {size} bytes; at most {MAX_TEXT_BYTES:,} are read"
        raise _UnusableFileError(problem_at(place, text, "name a recipe, not a data file"))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        text = f"byte 0x{raw[error.start]:02x} is not UTF-8 text"
        raise _UnusableFileError(problem_at(RecipePlace(str(path), line), text, "save the file as UTF-8")) from None


def _not_a_recipe(path: Path, root: Node | None) -> PlacedProblem:
    if root is None:
        return problem_at(RecipePlace(str(path), 1), "the file is empty", "start from `qlora init`")
    seen = "a list" if isinstance(root.value, list) else f"'{root.value}'"
    text = f"a recipe must be a mapping of sections, not {seen}"
    return problem_at(root.place, text, "write `model:`, `data:` and so on at the start of their lines")


def _locate(naming_file: Path, target: str) -> Path:
    """The file that `target` means: relative to the naming file, else a part of qlora's own `configs/`."""
    beside = Path(os.path.normpath(naming_file.parent / Path(target).expanduser()))
    if os.path.exists(beside) or Path(target).parts[0] != "configs" or (naming_file.parent / "configs").is_dir():
        return beside
    return Path(os.path.normpath(shipped_root() / target))


def _close_files(path: Path, *, is_part: bool) -> str:
    """A hint that names the files most like the missing `path`, or the shipped recipe that may be meant."""
    folder = path.parent
    names = [file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml")] if folder.is_dir() else []
    close = get_close_matches(path.name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{folder / name}'" for name in close) + "?"
    if not is_part and (shipped := close_shipped(path)):
        return f"`{shipped}` alone names the recipe that comes with qlora"
    if not folder.is_dir():
        return f"there is no folder '{folder}'"
    return f"the recipes in '{folder}' are {', '.join(sorted(names))}" if names else "write one with `qlora init`"
