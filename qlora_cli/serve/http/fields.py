"""The fields of a request: read with their type and range, refused where they would change the answer unheard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_cli.data.read.error_text import kind_of, shown
from qlora_cli.serve.http.faults import ApiFault, bad_field, unsupported

Body = Mapping[str, Any]
"""A request's JSON object."""

HARMLESS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
"""Fields that change no answer; they are not looked at."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"], []),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True,),
    "echo": (False,),
    "suffix": ("",),
    "top_k": (0, -1),
    "min_p": (0,),
}
"""Fields that this server does not follow -> values that ask for nothing."""

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_ALTERNATIVES = 20
SEED_RANGE = (-(2**63), 2**63 - 1)


def check_known(body: Body, known: frozenset[str]) -> None:
    """Refuse fields that the answer would not follow. Null is a field that is not there.

    Raises:
        ApiFault: 400, with the field's name.
    """
    for name, value in body.items():
        if value is None or name in known or name in HARMLESS:
            continue
        if name not in NEUTRAL:
            raise unsupported(name, value)
        if not any(_is_same(value, neutral) for neutral in NEUTRAL[name]):
            raise unsupported(name, value)


def _is_same(value: Any, neutral: Any) -> bool:
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def number(body: Body, name: str, default: float, low: float, high: float) -> float:
    """A number within a range, both ends included.

    Raises:
        ApiFault: 400.
    """
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_field(name, f"must be a number, found {kind_of(value)}")
    if not low <= value <= high:
        raise bad_field(name, f"must be from {low:g} to {high:g}, found {shown(value)}")
    return float(value)


def whole(body: Body, name: str, low: int, high: int) -> int | None:
    """A whole number within a range; None where it is not given. JSON's 5.0 is a whole number.

    Raises:
        ApiFault: 400.
    """
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_field(name, f"must be a whole number, found {kind_of(value)}")
    if not low <= value <= high:
        raise bad_field(name, f"must be from {low} to {high}, found {str(value)[:30]}")
    return value


def flag(body: Body, name: str) -> bool:
    """True or false; false where it is not given.

    Raises:
        ApiFault: 400.
    """
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise bad_field(name, f"must be true or false, found {kind_of(value)}")
    return value


def stop_texts(body: Body) -> tuple[str, ...]:
    """Texts that end the answer.

    Raises:
        ApiFault: 400; also for an empty text, which every answer begins with.
    """
    value = body.get("stop")
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise bad_field("stop", "must be a text or a list of texts")
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in texts):
        raise bad_field("stop", f"may hold {MAX_STOPS} texts of {MAX_STOP_CHARACTERS} characters")
    if "" in texts:
        raise bad_field("stop", "holds an empty text, which would end every answer before it begins")
    return tuple(texts)


def model_name(body: Body, names: tuple[str, ...]) -> str:
    """The model that is asked for.

    Raises:
        ApiFault: 400 where none is named, 404 for one that is not served.
    """
    value = body.get("model")
    if not isinstance(value, str):
        raise bad_field("model", f"must be one of {', '.join(names)}")
    if value not in names:
        text = f"there is no model {shown(value)}; there are: {', '.join(names)}"
        raise ApiFault(404, text, parameter="model", code="model_not_found")
    return value


def is_usage_wanted(body: Body, *, is_streamed: bool) -> bool:
    """Whether a stream ends with a chunk that counts tokens.

    Raises:
        ApiFault: 400.
    """
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise bad_field("stream_options", f"must be an object, found {kind_of(options)}")
    if not is_streamed:
        raise bad_field("stream_options", "goes with stream: true")
    for name, value in options.items():
        if name not in ("include_usage", "include_obfuscation"):
            raise unsupported(f"stream_options.{name}", value)
    return flag(options, "include_usage")
