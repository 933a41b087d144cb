"""The recipe that a translated config becomes: each line says what it was made of, and the end what was left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from qlora_cli.errors import ArgumentError
from qlora_cli.recipe.foreign_file import Translation, nested
from qlora_cli.recipe.foreign_outcome import Outcome
from qlora_cli.recipe.json_schema import all_keys
from qlora_cli.recipe.reader import NAME_PATTERN, load_recipe
from qlora_cli.recipe.secret_values import SECRETS_HINT
from qlora_cli.recipe.starter import write_recipe
from qlora_cli.secrets import find_secret, redacted

COLUMN = 46
"""Column at which comments begin."""

WIDTH = 116


def write_translation(translation: Translation, source: Path, out: Path, *, overwrite: bool) -> None:
    """Write the recipe to `out`, and make sure that it is read as it was meant.

    Raises:
        ArgumentError: if `out` exists or cannot be written, or if a value holds a secret.
    """
    for key, value in translation.settings.items():
        if kind := find_secret(str(value)):
            where = ", ".join(translation.origins[key])
            raise ArgumentError(f"'{where}' of '{source}' holds a secret: {kind}", hint=SECRETS_HINT)
    write_recipe(out, recipe_text(translation, source, out), overwrite=overwrite)
    load_recipe(out)


def recipe_text(translation: Translation, source: Path, out: Path) -> str:
    """The recipe as it is written; secrets are taken out."""
    tool = translation.tool.name
    settings = dict(translation.settings)
    name = str(settings.pop("name", out.stem))
    name = name if NAME_PATTERN.fullmatch(name) else out.stem
    order = {key: index for index, key in enumerate(all_keys())}
    ordered = dict(sorted(settings.items(), key=lambda item: order.get(item[0], 0)))
    head = (
        f"Made of {tool}'s {source.name} by `qlora init --from`: the comments name its keys, and what could not be "
        f"taken over is at the end. `qlora validate {out}` checks it, `qlora train {out}` runs it."
    )
    lines = [
        *(f"# {line}" for line in textwrap.wrap(one_line(head), WIDTH, break_on_hyphens=False)),
        f"name: {_scalar(name)}",
        *_section(nested(ordered), translation, (), 0),
        *_list(f"Without a counterpart here ({tool}'s keys):", translation.lost),
        *_list("Needs nothing here:", translation.needless),
    ]
    return redacted("\n".join(lines) + "\n")


def _section(tree: dict[str, Any], translation: Translation, path: tuple[str, ...], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, value in tree.items():
        here = (*path, key)
        ours = ".".join(here)
        if ours not in translation.settings:
            yield f"\n{key}:" if depth == 0 else f"{indent}{key}:"
            yield from _section(value, translation, here, depth + 1)
            continue
        origin = ", ".join(translation.origins[ours]) or f"{translation.tool.name}'s default"
        if ours in ("data.train", "data.eval"):
            yield _commented(f"{indent}{key}:", origin)
            for source in value:
                rows = [f"{name}: {_scalar(part)}" for name, part in source.items()]
                yield f"{indent}  - {rows[0]}"
                yield from (f"{indent}    {row}" for row in rows[1:])
        else:
            yield _commented(f"{indent}{key}: {_scalar(value)}", origin)


def _commented(line: str, comment: str) -> str:
    return f"{line:<{COLUMN}}  # {one_line(comment)}"


def _list(head: str, outcomes: list[Outcome]) -> Iterator[str]:
    if not outcomes:
        return
    yield f"\n# {head}"
    for outcome in outcomes:
        yield from (f"#   {line}" for line in textwrap.wrap(told(outcome), WIDTH, subsequent_indent="    "))


def told(outcome: Outcome) -> str:
    """A key with its value and the remark on it, on one line."""
    value = "" if outcome.value is None else f" {_short(outcome.value)}"
    return redacted(one_line(f"{outcome.key}:{value} - {outcome.why}"))


def one_line(text: str) -> str:
    """Text without line ends or other control characters.

    >>> one_line("a\\nb\\x1b[31m")
    'a b [31m'
    """
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _short(value: Any) -> str:
    text = "{…}" if isinstance(value, dict) and len(str(value)) > 80 else _scalar(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _scalar(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        mantissa, _, exponent = f"{value:.12g}".partition("e")
        dotted = mantissa if "." in mantissa else f"{mantissa}.0"
        return f"{dotted}e{exponent}" if exponent else dotted
    text = yaml.safe_dump(value, width=10**6, allow_unicode=True, default_flow_style=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()
