"""Translation of one key of another tool, and its value in our types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from qlora_cli.errors import RecipeError
from qlora_cli.recipe.json_schema import field_at, options_of

Config = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Translation of one key."""

    key: str
    """As the other tool calls it; inside a list or section with the way there, `datasets[0].type`."""

    value: Any
    settings: dict[str, Any] = field(default_factory=dict)
    """Our dotted keys with their values."""

    why: str = ""
    """Why there are no settings, or what they leave out."""

    is_needless: bool = False
    """Whether nothing is lost: what it asks for is done anyway, or concerns only the other tool."""


Handler = Callable[[str, Any, Config], Iterator[Outcome]]


def refuse(key: str, value: Any, why: str) -> RecipeError:
    """For a file that asks for another kind of training."""
    return RecipeError(f"'{key}: {value}' {why}", hint="take a config of supervised fine-tuning with LoRA or QLoRA")


def coerced(ours: str, value: Any) -> Any:
    """A value in the type of our key; as it is where it has none of its types.

    Other tools read YAML 1.1, where `1e-4` is text and `on` is true, and take lists with commas.

    >>> coerced("training.learning_rate", "1e-4"), coerced("lora.target_modules", "q_proj, v_proj")
    (0.0001, ['q_proj', 'v_proj'])
    >>> coerced("data.packing", "yes"), coerced("lora.r", 8.0), coerced("training.seed", "x")
    (True, 8, 'x')
    """
    options = options_of(field_at(tuple(ours.split("."))) or {})
    kinds = {option.get("type") for option in options}
    words = {word for option in options for word in option.get("enum", [option.get("const")])}
    if isinstance(value, str) and value not in words and kinds & {"integer", "number"}:
        value = _number(value)
    if isinstance(value, float) and value.is_integer() and "integer" in kinds and "number" not in kinds:
        return int(value)
    if isinstance(value, str) and value not in words:
        if "boolean" in kinds and value.lower() in ("yes", "on", "true", "no", "off", "false"):
            return value.lower() in ("yes", "on", "true")
        if "array" in kinds:
            return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def is_on(value: Any) -> bool:
    """Whether a switch is on, as YAML 1.1 or JSON writes it."""
    return value is True or str(value).lower() in ("true", "yes", "on", "1")
