"""A request of a client, read: what the engine is asked, and how the answer is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_cli.data.example import Message, Place
from qlora_cli.data.read.error_text import kind_of
from qlora_cli.data.read.messages import check_messages, read_tools
from qlora_cli.data.rejection import RowError
from qlora_cli.serve.http import fields
from qlora_cli.serve.http.faults import bad_field, of_error, unsupported

SAMPLING = [
    "model",
    "stream",
    "stream_options",
    "stop",
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "logprobs",
]  # in both kinds of request
CHAT_FIELDS = frozenset([*SAMPLING, "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice"])
COMPLETION_FIELDS = frozenset([*SAMPLING, "prompt"])

MOST_TOKENS = 1 << 30
MAX_COMPLETION_LOGPROBS = 5
HERE = Place("request", None, 1)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and how many."""

    max_new_tokens: int | None
    """None takes what the server allows by default."""

    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    num_top_logprobs: int | None


@dataclass(frozen=True)
class Asked:
    """What every request holds."""

    model: str
    sampling: Sampling
    is_streamed: bool
    is_usage_wanted: bool


@dataclass(frozen=True)
class ChatAsked(Asked):
    """A conversation that the assistant is to continue."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class CompletionAsked(Asked):
    """Text, or its tokens, that is to be continued."""

    prompt: str | tuple[int, ...]


def read_chat(body: fields.Body, names: tuple[str, ...]) -> ChatAsked:
    """The request of `/v1/chat/completions`.

    Args:
        body: its JSON object.
        names: names of models.

    Raises:
        ApiFault: 400 or 404, with the field.
    """
    model = fields.model_name(body, names)
    fields.check_known(body, CHAT_FIELDS)
    is_wanted = fields.flag(body, "logprobs")
    num_top = fields.whole(body, "top_logprobs", 0, fields.MAX_ALTERNATIVES)
    if num_top is not None and not is_wanted:
        raise bad_field("top_logprobs", "goes with logprobs: true")
    most = [fields.whole(body, name, 1, MOST_TOKENS) for name in ("max_completion_tokens", "max_tokens")]
    if None not in most and most[0] != most[1]:
        raise bad_field("max_tokens", "differs from max_completion_tokens, which is its newer name")
    sampling = _sampling(body, most[0] or most[1], (num_top or 0) if is_wanted else None)
    return ChatAsked(model, sampling, *_telling(body), _messages(body), _tools(body))


def read_completion(body: fields.Body, names: tuple[str, ...]) -> CompletionAsked:
    """The request of `/v1/completions`; arguments and errors as of `read_chat`."""
    model = fields.model_name(body, names)
    fields.check_known(body, COMPLETION_FIELDS)
    num_top = fields.whole(body, "logprobs", 0, MAX_COMPLETION_LOGPROBS)
    sampling = _sampling(body, fields.whole(body, "max_tokens", 1, MOST_TOKENS), num_top)
    return CompletionAsked(model, sampling, *_telling(body), _prompt(body))


def _sampling(body: fields.Body, max_new_tokens: int | None, num_top_logprobs: int | None) -> Sampling:
    return Sampling(
        max_new_tokens,
        temperature=fields.number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=fields.number(body, "top_p", 1.0, 0.0, 1.0),
        seed=fields.whole(body, "seed", *fields.SEED_RANGE),
        stop=fields.stop_texts(body),
        num_top_logprobs=num_top_logprobs,
    )


def _telling(body: fields.Body) -> tuple[bool, bool]:
    is_streamed = fields.flag(body, "stream")
    return is_streamed, fields.is_usage_wanted(body, is_streamed=is_streamed)


def _messages(body: fields.Body) -> tuple[Message, ...]:
    try:
        messages = check_messages(body.get("messages"), "messages", HERE)
    except RowError as error:
        raise of_error(error, "messages") from error
    if messages[-1]["role"] == "assistant":
        raise bad_field(
            "messages", "end with a turn of the assistant: a begun answer is not continued, so end with the user's"
        )
    return tuple(messages)


def _tools(body: fields.Body) -> tuple[dict[str, Any], ...]:
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise unsupported("tool_choice", choice, "the model itself decides whether it calls, so use auto or none")
    if isinstance(body.get("tools"), str):
        raise bad_field("tools", "must be a list of JSON schemas, found a string")
    try:
        tools = read_tools(body.get("tools"), HERE) or []
    except RowError as error:
        raise of_error(error, "tools") from error
    for tool in tools:
        function = tool.get("function")
        if (
            tool.get("type") != "function"
            or not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
        ):
            raise bad_field("tools", 'must hold {"type": "function", "function": {"name": ...}} each')
    return () if choice == "none" else tuple(tools)


def _prompt(body: fields.Body) -> str | tuple[int, ...]:
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_field("prompt", f"must be a text or a list of tokens, found {kind_of(value)}")
    if value and all(isinstance(one, str | list) for one in value):
        raise unsupported("prompt", value, "send one request for each prompt")
    if not value or not all(type(one) is int and abs(one) <= MOST_TOKENS for one in value):
        raise bad_field("prompt", "must be a text or a list of tokens that is not empty")
    return tuple(value)
