"""docs/recipe.md, the table of recipe keys, from the sentences in qlora_cli/recipe/schema.py.

    .venv/bin/python docs/write_recipe.py

`tests/test_docs.py` fails when the page and the schema differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from qlora_cli.recipe.explain import describe
from qlora_cli.recipe.json_schema import JsonSchema, field_at, keys_of, options_of, recipe_json_schema

PAGE = Path(__file__).resolve().parent / "recipe.md"

HEAD = """\
# The recipe, key by key

Made from the schema by `docs/write_recipe.py`; `tests/test_docs.py` keeps it in step. `qlora schema` prints the same
as JSON Schema for editors. A key that is not here is refused, and so is a value out of its range.

Any key can be overridden on the command line: `qlora train recipe.yaml --set lora.r=8`. Where two keys exclude each
other, such as `max_steps` and `num_train_epochs`, the one that is set on the command line, or in a file over a part
that it extends, replaces the other, and a note says so; both in one file, or both on the command line, are refused.

Paths to data, models and templates start at the current directory; paths in `extends` at the file that names them.
"""

SAME_AS = {"data.eval": "data.train"}
"""Section -> the section whose keys it shares; they are listed once."""


def reference() -> str:
    """The page."""
    sections = list(_sections(recipe_json_schema(), ""))
    return "\n".join([HEAD, *(part for key, keys in sections for part in _table(key, keys))])


def _sections(field: JsonSchema, key: str) -> Iterator[tuple[str, dict[str, JsonSchema]]]:
    """Each section by its dotted key, with the keys in it; the recipe itself first."""
    keys = keys_of(field)
    yield key, keys
    for name, below in keys.items():
        path = f"{key}.{name}".lstrip(".")
        if keys_of(below) and path not in SAME_AS:
            yield from _sections(below, path)


def _table(key: str, keys: dict[str, JsonSchema]) -> Iterator[str]:
    yield f"## {key or 'top of the file'}\n"
    if key:
        yield f"{_section_sentence(key)}\n"
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    required = _required(key)
    for name, field in keys.items():
        cells = (f"`{name}`", _values(field), _default(field, is_required=name in required), _sentence(field))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
    yield ""


def _section_sentence(key: str) -> str:
    """Description of the section, or of one item where it is a list."""
    shared = [other for other, section in SAME_AS.items() if section == key]
    return str(_section(key)["description"]) + "".join(f" `{other}` has the same keys." for other in shared)


def _section(key: str) -> JsonSchema:
    """The schema of a section, or of an item where the key holds a list of them."""
    options = options_of(field_at(key.split(".")) or {})
    items = [below for option in options if option.get("type") == "array" for below in options_of(option["items"])]
    return next(option for option in [*options, *items] if "properties" in option)


def _required(key: str) -> list[str]:
    """Names of the keys that a recipe which extends nothing cannot do without."""
    alone = recipe_json_schema()["anyOf"][1]
    if not key:
        return list(alone["required"])
    return list(alone["properties"].get(key, _section(key)).get("required", []))


def _values(field: JsonSchema) -> str:
    kinds = {option.get("type") for option in options_of(field)}
    if keys_of(field) and len(kinds) == 1:
        return "a list of sections" if kinds == {"array"} else "a section"
    return describe(field).replace("'", "`")


def _default(field: JsonSchema, *, is_required: bool) -> str:
    """The default as YAML writes it."""
    if is_required:
        return "required"
    value = field.get("default")
    if value is None or value in ([], {}) or isinstance(value, dict):
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _sentence(field: JsonSchema) -> str:
    return str(field.get("description", ""))


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"wrote {PAGE}")
