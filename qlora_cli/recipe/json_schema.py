"""The recipe as JSON Schema: for editors, and for the words of error messages."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from qlora_cli.recipe import data_schema, eval_schema, quantization_schema
from qlora_cli.recipe import schema as recipe_schema
from qlora_cli.recipe.schema import Recipe
from qlora_cli.recipe.tree import PathPart

DIALECT = "https://json-schema.org/draft/2020-12/schema"
JsonSchema = dict[str, Any]


@cache
def recipe_json_schema() -> JsonSchema:
    """JSON Schema (draft 2020-12) of a recipe file, with the short forms and `extends` that the reader accepts.

    Keys that a part may bring are required only where nothing is extended.
    """
    schema = Recipe.model_json_schema()
    for name, sentences in _sentences().items():
        section = schema if name == Recipe.__name__ else schema["$defs"].get(name, {})
        for key, sentence in sentences.items():
            section["properties"][key]["description"] = sentence
    for key in ("train", "eval"):
        _accept_short_source(schema["$defs"]["DataSection"]["properties"][key])
    path = {"type": "string", "minLength": 1}
    extends = {
        "description": "Parts to build on: paths relative to this file, or qlora's own `configs/...`. "
        "Later ones win, and this file wins over all.",
        "anyOf": [path, {"type": "array", "items": path}],
    }
    required = {section: schema["$defs"][name].pop("required") for section, name in _SECTIONS_WITH_REQUIRED}
    alone = {
        "required": sorted(required),
        "properties": {section: {"required": keys} for section, keys in required.items()},
    }
    return {
        "$schema": DIALECT,
        **schema,
        "title": "qlora recipe",
        "properties": {"extends": extends, **schema["properties"]},
        "required": [],
        "anyOf": [{"required": ["extends"]}, alone],
    }


_SECTIONS_WITH_REQUIRED = (("model", "ModelSection"), ("data", "DataSection"))


def _sentences() -> dict[str, dict[str, str]]:
    """Class -> field -> the text under the field in its source, on one line."""
    found: dict[str, dict[str, str]] = {}
    sections = (
        node
        for module in (data_schema, eval_schema, quantization_schema, recipe_schema)
        for node in ast.parse(inspect.getsource(module)).body
    )
    for section in sections:
        if not isinstance(section, ast.ClassDef):
            continue
        sentences = found.setdefault(section.name, {})
        for field, below in zip(section.body, section.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                sentences[field.target.id] = " ".join(str(below.value.value).split())
    return found


def _accept_short_source(field: JsonSchema) -> None:
    """Let a sources field be a path, a source, or a list of either, as the schema's validator does."""
    options = field.pop("anyOf", [field.copy()])
    section = {"$ref": "#/$defs/SourceSection"}
    path = {"type": "string", "minLength": 1}
    is_optional = {"type": "null"} in options
    for keyword in ("items", "minItems", "minLength", "type"):
        field.pop(keyword, None)
    field["anyOf"] = [path, section, {"type": "array", "items": {"anyOf": [path, section]}, "minItems": 1}]
    if is_optional:
        field["anyOf"].append({"type": "null"})


def options_of(field: JsonSchema) -> list[JsonSchema]:
    """Alternatives of a field, references followed and null left out."""
    if "$ref" in field:
        return [recipe_json_schema()["$defs"][field["$ref"].rsplit("/", 1)[-1]]]
    if "anyOf" in field and "properties" not in field:
        return [found for option in field["anyOf"] for found in options_of(option)]
    return [] if field.get("type") == "null" else [field]


def keys_of(field: JsonSchema) -> dict[str, JsonSchema]:
    """The keys of a section, of a list of sections, or of any short form of them; empty for a plain value."""
    for option in options_of(field):
        if "properties" in option:
            return option["properties"]
        if option.get("type") == "array" and (keys := keys_of(option["items"])):
            return keys
    return {}


def field_at(path: Sequence[PathPart]) -> JsonSchema | None:
    """The schema of the value at `path`; None where no key leads there.

    >>> field_at(("lora", "r"))["minimum"]
    1
    """
    field = recipe_json_schema()
    for part in path:
        if isinstance(part, int):
            lists = [option for option in options_of(field) if option.get("type") == "array"]
            below = lists[0]["items"] if lists else None
        elif keys := keys_of(field):
            below = keys.get(part)
        else:
            free = [option["additionalProperties"] for option in options_of(field) if option.get("type") == "object"]
            below = free[0] if free else None
        if below is None:
            return None
        field = below
    return field


def all_keys(field: JsonSchema | None = None, prefix: str = "") -> Iterator[str]:
    """Every key of a recipe by its dotted path, sections too: `lora`, `lora.r`, `data.train.path`, ..."""
    for key, below in keys_of(field or recipe_json_schema()).items():
        yield prefix + key
        yield from all_keys(below, f"{prefix}{key}.")
