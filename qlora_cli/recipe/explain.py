"""Pydantic's errors about a recipe, in this project's words and with places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from qlora_cli.recipe.foreign_keys import foreign_hint
from qlora_cli.recipe.json_schema import JsonSchema, all_keys, field_at, keys_of, options_of, recipe_json_schema
from qlora_cli.recipe.tree import Node, PathPart, PlacedProblem, Unreadable, find, path_text, problem_at

Path = tuple[PathPart, ...]


def explain(errors: Iterable[Mapping[str, Any]], root: Node) -> tuple[list[PlacedProblem], set[str]]:
    """Problems for pydantic's `errors`, and the dotted keys whose values cannot be relied on.

    Args:
        errors: `ValidationError.errors()`.
        root: the tree that was checked.
    """
    found: dict[Path, Mapping[str, Any]] = {}
    doubtful: set[str] = set()
    for error in errors:
        path = _path_in(root, error)
        if _is_unreadable(find(root, path)):
            doubtful.add(_dotted(path))
        else:
            found.setdefault(path, error)
    problems = []
    for path, error in found.items():
        # A union reports the branch that does not fit beside the item that is wrong: the item says more.
        if any(other != path and other[: len(path)] == path for other in found):
            continue
        problems.append(_explain_one(path, error, root))
        doubtful.add(_dotted(path))
    return problems, doubtful


def _is_unreadable(node: Node) -> bool:
    """Whether the fault of a value, or of an item of a list, is reported already."""
    items = node.value if isinstance(node.value, list) else [node]
    return any(isinstance(item.value, Unreadable) for item in items)


def _path_in(root: Node, error: Mapping[str, Any]) -> Path:
    """Pydantic's location without the steps that the user did not write: union branches and short forms."""
    path: list[PathPart] = []
    node = root
    for part in error["loc"]:
        below = node.child(part)
        if below is not None:
            path.append(part)
            node = below
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


def _dotted(path: Sequence[PathPart]) -> str:
    """The key that a path belongs to, list indices left out."""
    return ".".join(part for part in path if isinstance(part, str))


def _explain_one(path: Path, error: Mapping[str, Any], root: Node) -> PlacedProblem:
    place = find(root, path).place
    name = path_text(path)
    if error["type"] == "missing":
        field = field_at(path) or {}
        return problem_at(place, f"missing key '{name}'", f"add `{path[-1]}:` ({_first_sentence(field)})")
    if error["type"] == "extra_forbidden":
        return problem_at(place, f"unknown key '{name}'", unknown_key_hint(path))
    value = find(root, path).plain()
    field = field_at(path) or {}
    choices = _choices(field)
    if choices and isinstance(value, str):
        return problem_at(place, f"{name} cannot be {show(value)}", _choice_hint(value, choices))
    return problem_at(place, f"{name} must be {describe(field)}, not {show(value)}", _value_hint(path, value, field))


def unknown_key_hint(path: Path) -> str:
    """Hint on what was probably meant by a key that the schema does not have."""
    *section, key = path
    prefix = _dotted(section)
    if key == "extends":
        return "'extends' stands at the top of the file, not in a section"
    known = list(all_keys())
    elsewhere = [full for full in known if full.rpartition(".")[2] == key]
    if elsewhere:
        return "write it as " + " or ".join(f"'{full}'" for full in elsewhere)
    if hint := foreign_hint(str(key)):
        return hint
    siblings = list(keys_of(field_at(section) or {}) if section else keys_of(recipe_json_schema()))
    if close := get_close_matches(str(key), siblings, n=1, cutoff=0.6):
        return f"did you mean '{path_text((*section, close[0]))}'?"
    last_parts = {full.rpartition(".")[2]: full for full in reversed(known)}
    if close := get_close_matches(str(key), last_parts, n=1, cutoff=0.75):
        return f"did you mean '{last_parts[close[0]]}'?"
    owner = f"'{prefix}'" if prefix else "a recipe"
    return f"the keys of {owner} are {', '.join(siblings)}"


def describe(field: JsonSchema) -> str:
    """Values that a field may hold, in words.

    >>> describe({"type": "number", "exclusiveMinimum": 0, "maximum": 1})
    'a number above 0 and at most 1'
    """
    options = options_of(field)
    if {option.get("type") for option in options} == {"string", "object", "array"}:
        return "a path, a source, or a list of them"
    return " or ".join(dict.fromkeys(_describe_option(option) for option in options))


def _describe_option(option: JsonSchema) -> str:
    if "const" in option:
        return f"'{option['const']}'"
    if "enum" in option:
        return "one of " + ", ".join(map(str, option["enum"]))
    if "pattern" in option:
        if r"\d{4}" in option["pattern"]:
            return "a day such as 2026-11-28"
        return "a name of at most 100 letters, digits, '.', '_' and '-' that starts with a letter or digit"
    match option.get("type"):
        case "integer":
            return "a whole number" + _range(option)
        case "number":
            return "a number" + _range(option)
        case "boolean":
            return "true or false"
        case "string":
            return "text" + (" that is not empty" if option.get("minLength") else "")
        case "array":
            of = describe(option["items"])
            return f"a list of {of}" + (" with at least one item" if option.get("minItems") else "")
        case _:
            return "a section of `key: value` lines"


def _range(option: JsonSchema) -> str:
    bounds = (
        ("minimum", "of at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    )
    words = [f"{word} {option[bound]:.15g}" for bound, word in bounds if bound in option]
    return " " + " and ".join(words) if words else ""


def _choices(field: JsonSchema) -> list[str]:
    """The words to choose from, where a field holds nothing but one of them."""
    options = options_of(field)
    return list(options[0]["enum"]) if len(options) == 1 and "enum" in options[0] else []


def _choice_hint(value: str, choices: list[str]) -> str:
    ordered = get_close_matches(value.lower(), choices, n=len(choices), cutoff=0.0)
    ordered += [choice for choice in choices if choice not in ordered]
    is_close = bool(get_close_matches(value.lower(), ordered[:1], cutoff=0.6))
    return (f"did you mean '{ordered[0]}'? " if is_close else "") + f"choose one of {', '.join(ordered)}"


def _value_hint(path: Path, value: Any, field: JsonSchema) -> str:
    kinds = {option.get("type") for option in options_of(field)}
    if kinds & {"integer", "number"} and isinstance(value, str):
        if value.replace(".", "", 1).isdigit():
            return f"write {value} without quotes"
    elif kinds == {"integer"} and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}"
    elif kinds == {"boolean"} and str(value).lower() in ("yes", "on", "1", "true"):
        return "write true"
    elif kinds == {"boolean"} and str(value).lower() in ("no", "off", "0", "false"):
        return "write false"
    elif "array" in kinds and isinstance(value, str) and value:
        return f"write [{value}]"
    elif kinds == {"string"} and isinstance(value, int | float):
        return f"write it in quotes: '{show(value)}'"
    elif kinds == {"object"} and keys_of(field):
        return f"its keys are {', '.join(keys_of(field))}"
    default = field.get("default")
    if default not in (None, []) and not isinstance(default, dict):
        return f"take the line out for the default, {show(default)}"
    return _first_sentence(field)


def _first_sentence(field: JsonSchema) -> str:
    described = [one["description"] for one in (field, *options_of(field)) if "description" in one]
    return " ".join(described[0].split()).split(". ")[0].removesuffix(".") if described else ""


def show(value: Any) -> str:
    """A value as YAML writes it, cut to one short line.

    >>> show("sixteen"), show(True), show(None), show({"a": 1})
    ("'sixteen'", 'true', 'null', 'a section')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a section" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(show(item) for item in value[:4]) + (", …]" if len(value) > 4 else "]")
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
