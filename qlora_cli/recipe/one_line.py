"""Values as YAML on one line, to be pasted into a recipe."""

from __future__ import annotations

import json
from typing import Any

import yaml

from qlora_cli.recipe.yaml_text import CoreSchemaLoader


class RecipeDumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as anything else."""


RecipeDumper.yaml_implicit_resolvers = {
    **{first: list(pairs) for first, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()},
    **CoreSchemaLoader.yaml_implicit_resolvers,
}


def one_line(value: Any) -> str:
    r"""The value in YAML's flow style, on one line whatever it holds.

    >>> one_line({"path": "a b.jsonl", "columns": {"instruction": "q, or so", "output": "yes"}})
    "{path: a b.jsonl, columns: {instruction: 'q, or so', output: 'yes'}}"
    >>> print(one_line("two\nlines"))
    "two\nlines"
    """
    text = yaml.dump(
        value, Dumper=RecipeDumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9
    )
    text = text.removesuffix("...\n").strip()
    return json.dumps(value, ensure_ascii=False) if "\n" in text else text
