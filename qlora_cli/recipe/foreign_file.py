"""A config of axolotl, LLaMA-Factory or TRL as settings of ours: every key is translated, listed, or refused."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qlora_cli.errors import ArgumentError, RecipeError
from qlora_cli.recipe.explain import describe
from qlora_cli.recipe.foreign_keys import counterpart
from qlora_cli.recipe.foreign_outcome import Config, Outcome
from qlora_cli.recipe.foreign_tools import FAMILIES, TOOLS, Tool
from qlora_cli.recipe.foreign_values import UNKNOWN, copy_to, same_key
from qlora_cli.recipe.json_schema import all_keys, field_at
from qlora_cli.recipe.rules import check_rules
from qlora_cli.recipe.schema import Recipe

MAX_BYTES = 1024 * 1024
"""A config takes kilobytes."""

COMMAND_LINE = "the command line"


@dataclass
class Translation:
    """A translated file."""

    tool: Tool
    settings: dict[str, Any] = field(default_factory=dict)
    """Our dotted keys -> values."""

    origins: dict[str, list[str]] = field(default_factory=dict)
    """Our dotted keys -> the keys that say so; none for the tool's default."""

    values: dict[str, Any] = field(default_factory=dict)
    """The keys that say so -> their values, as the other tool has them."""

    lost: list[Outcome] = field(default_factory=list)
    """Keys without a counterpart."""

    needless: list[Outcome] = field(default_factory=list)
    """Keys that need nothing here."""


def translate(path: Path, given: dict[str, Any]) -> Translation:
    """Settings that validate, and what could not be taken over.

    Args:
        path: YAML or JSON.
        given: settings that the file need not or must not decide, such as another base.

    Raises:
        ArgumentError: if the file cannot be read, or belongs to none of the tools.
        RecipeError: if it asks for another kind of training, or names no base or no data.
    """
    config = read_config(path)
    tool = tool_of(config, path)
    translation = Translation(tool)
    for key, value in given.items():
        translation.settings[key], translation.origins[key] = value, [COMMAND_LINE]
    for key, value in config.items():
        for outcome in _outcomes(tool, key, value, config):
            _take(translation, outcome)
    _refuse_full_training(tool, config)
    _fill_in(translation, config)
    while _take_out_a_fault(translation, path):
        pass
    return translation


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice: one of the two would be dropped."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f"line {line}: the key '{key.value}' occurs twice")
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_config(path: Path) -> Config:
    """The mapping in a YAML or JSON file.

    Raises:
        ArgumentError: if there is none.
    """
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ArgumentError(f"'{path}' is larger than {MAX_BYTES:,} bytes", hint="name a training config")
        config = yaml.load(path.read_text("utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as fault:
        raise ArgumentError(f"'{path}' cannot be read: {fault.strerror}", hint="name a YAML or JSON file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        reason = " ".join(str(getattr(fault, "problem", None) or fault).split())[:200]
        raise ArgumentError(f"'{path}' is not YAML: {reason}", hint="fix the file, or name another one") from None
    if not isinstance(config, dict) or not config:
        raise ArgumentError(f"'{path}' holds no keys", hint="name a training config of axolotl, LLaMA-Factory or TRL")
    return {str(key): value for key, value in config.items()}


def tool_of(config: Config, path: Path) -> Tool:
    """The tool that most of the file's keys belong to.

    Raises:
        ArgumentError: if none of them do.
    """
    best = max(TOOLS, key=lambda tool: len(tool.marks & config.keys()))
    if not best.marks & config.keys():
        if {"model", "data"} <= config.keys():
            hint = f"it looks like a recipe already: `qlora validate {path}`"
        else:
            hint = "name a training config of axolotl, LLaMA-Factory or TRL"
        raise ArgumentError(f"'{path}' has no key that shows which tool it is of", hint=hint)
    return best


def _outcomes(tool: Tool, key: str, value: Any, config: Config) -> Iterator[Outcome]:
    if value is None or value == "":
        yield Outcome(key, value, why="no value", is_needless=True)
    elif key in tool.handlers:
        outcomes = list(tool.handlers[key](key, value, config))
        yield from outcomes or [Outcome(key, value, why="holds nothing that is read here")]
    elif ours := same_key(key, tool.name):
        yield from copy_to(ours)(key, value, config)
    else:
        is_off = value is False or value in ([], {})
        yield Outcome(key, value, why="off here too" if is_off else _reason(tool, key), is_needless=is_off)


def _reason(tool: Tool, key: str) -> str:
    return counterpart(key, tool.name) or next((why for start, why in FAMILIES if key.startswith(start)), UNKNOWN)


def _take(translation: Translation, outcome: Outcome) -> None:
    translation.values[outcome.key] = outcome.value
    for ours, value in outcome.settings.items():
        if ours not in translation.settings:
            translation.settings[ours], translation.origins[ours] = value, [outcome.key]
        elif translation.settings[ours] != value:
            by = ", ".join(translation.origins[ours])
            why = f"'{ours}' is {_short(translation.settings[ours])} already, by {by}"
            left = translation.needless if by == COMMAND_LINE else translation.lost
            left.append(Outcome(outcome.key, outcome.value, why=why, is_needless=by == COMMAND_LINE))
        else:
            translation.origins[ours].append(outcome.key)
    if outcome.why:
        (translation.needless if outcome.is_needless else translation.lost).append(outcome)
    elif not outcome.settings:
        why = "as it is here"
        translation.needless.append(Outcome(outcome.key, outcome.value, why=why, is_needless=True))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _refuse_full_training(tool: Tool, config: Config) -> None:
    """axolotl and TRL train the base's own weights where the file names no adapter."""
    switch = {"axolotl": "adapter", "TRL": "use_peft"}.get(tool.name)
    if switch and config.get(switch) in (None, ""):
        raise RecipeError(
            f"there is no '{switch}': {tool.name} would train the base's own weights; here every run trains an adapter",
            hint=f"add `{switch}: {'qlora' if switch == 'adapter' else 'true'}` to the file, if an adapter will do",
        )


def _fill_in(translation: Translation, config: Config) -> None:
    """Fill in the tool's defaults where the file is silent."""
    settings, tool = translation.settings, translation.tool
    defaults = dict(tool.defaults)
    if tool.name == "LLaMA-Factory":
        defaults["lora.lora_alpha"] = (
            2 * settings.get("lora.r", 8) if isinstance(settings.get("lora.r", 8), int) else 16
        )
    if tool.name == "TRL" and settings.get("quantization.quant_type") == "nf4":
        defaults["quantization.double_quant"] = False
    if settings.get("training.max_steps") is not None:
        defaults.pop("training.num_train_epochs", None)
    if settings.get("training.lr_scheduler_type") == "constant":
        defaults.pop("training.warmup_ratio", None)
    for ours, value in defaults.items():
        if ours not in settings:
            settings[ours], translation.origins[ours] = value, []
    if tool.name == "TRL" and not {"assistant_only_loss", "completion_only_loss"} & config.keys():
        why = "TRL trains prompts of `messages` too unless it is true; 'data.train_on: all' does that here"
        translation.lost.append(Outcome("assistant_only_loss", "not given", why=why))


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections.

    >>> nested({"lora.r": 8, "name": "a"})
    {'lora': {'r': 8}, 'name': 'a'}
    """
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, last = key.split(".")
        holder = tree
        for section in sections:
            holder = holder.setdefault(section, {})
        holder[last] = value
    return tree


def _take_out_a_fault(translation: Translation, path: Path) -> bool:
    """Take out one setting that the schema or a rule refuses, and list it with the reason; False where none is left.

    Raises:
        RecipeError: if there is no base or no data.
    """
    settings = translation.settings
    for ours, what, option in (("model.base_model", "base model", "--base"), ("data.train", "data", "--data")):
        if not settings.get(ours):
            raise RecipeError(f"names no {what} that is read here", place=str(path), hint=f"name it with {option}")
    recipe = {"name": "translated", **nested(settings)}
    try:
        Recipe.model_validate(recipe)
    except ValidationError as fault:
        _take_out(translation, tuple(fault.errors(include_url=False)[0]["loc"]), "")
        return True
    conflicts = check_rules(recipe)
    if conflicts:
        _take_out(translation, conflicts[0].path, f"{conflicts[0].text}; {conflicts[0].hint}")
    return bool(conflicts)


def _take_out(translation: Translation, path: tuple[str | int, ...], why: str) -> None:
    """Drop the setting at a path; inside a source only its key."""
    for length in range(len(path), 0, -1):
        ours = ".".join(str(part) for part in path[:length])
        if ours in translation.settings:
            break
    else:
        raise AssertionError(f"nothing was set at {path}")
    origins, value = translation.origins[ours], translation.settings[ours]
    inner = [part for part in path[length:] if isinstance(part, str) and part in _source_keys()]
    indices = [part for part in path[length:] if isinstance(part, int)]
    if ours in ("data.train", "data.eval") and inner and inner[0] != "path":
        source = value[indices[0] if indices else 0]
        refused = source.pop(inner[0])
        why = why or f"{inner[0]} must be {describe(field_at((*ours.split('.'), inner[0])) or {})}"
        where = f"{origins[0]}[{indices[0] if indices else 0}].{inner[0]}"
        translation.lost.append(Outcome(where, refused, why=why))
        return
    del translation.settings[ours], translation.origins[ours]
    why = why or f"{ours} must be {describe(field_at(tuple(ours.split('.'))) or {})}"
    translation.lost += [Outcome(origin, translation.values.get(origin, value), why=why) for origin in origins]


def _source_keys() -> set[str]:
    return {key.removeprefix("data.train.") for key in all_keys() if key.startswith("data.train.")}
