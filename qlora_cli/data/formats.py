"""Layouts of a row, and how each becomes an example.

To add a layout: one function, one line in FORMATS, one recipe, one test.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_cli.data.example import Conversation, Example, Message, Place, PlainText
from qlora_cli.data.messages import check_messages, check_turns, kind_of, read_tools
from qlora_cli.errors import DataError

Fields = Mapping[str, Any]
"""Format field -> value of this row; optional fields that the row lacks are absent."""

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
    "function_call": "function_call",
}
"""Role names seen in ShareGPT-style data -> ours; `function_call` is an assistant turn that holds a call as JSON."""


@dataclass(frozen=True)
class Format:
    """One layout of a row."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Fields, Place], Example]

    @property
    def fields(self) -> tuple[str, ...]:
        """All field names, as `columns` may map them."""
        return self.required + self.optional


def _text(fields: Fields, name: str, place: Place, *, may_be_empty: bool = False) -> str:
    value = fields.get(name)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{name} must be a string, found {kind_of(value)}", place=str(place))
    if not value.strip() and not may_be_empty:
        raise DataError(f"{name} is empty", place=str(place), hint="fill it in or leave the row out")
    return value


def _system_turn(fields: Fields, place: Place) -> list[Message]:
    system = _text(fields, "system", place, may_be_empty=True)
    return [{"role": "system", "content": system}] if system.strip() else []


def from_alpaca(fields: Fields, place: Place) -> Conversation:
    """Stanford Alpaca: an instruction, perhaps an input it works on, and the output.

    The user's turn is the two with a blank line between. It also carries them apart, as `instruction` and `input`:
    the Alpaca template gives the input its own heading; other templates read `content` alone.
    """
    instruction = _text(fields, "instruction", place)
    given = _text(fields, "input", place, may_be_empty=True)
    user: Message = {"role": "user", "content": instruction}
    if given.strip():
        user = {"role": "user", "content": f"{instruction}\n\n{given}", "instruction": instruction, "input": given}
    answer = {"role": "assistant", "content": _text(fields, "output", place)}
    return Conversation([*_system_turn(fields, place), user, answer], None, place)


def from_messages(fields: Fields, place: Place) -> Conversation:
    """Chat messages with `role` and `content`, as the OpenAI API and `apply_chat_template` take them."""
    messages = check_messages(fields["messages"], "messages", place)
    check_turns(messages, place)
    return Conversation(messages, read_tools(fields.get("tools"), place), place)


def from_sharegpt(fields: Fields, place: Place) -> Conversation:
    """ShareGPT: turns of `from` and `value`, with its many role names."""
    turns = fields["conversations"]
    if not isinstance(turns, list):
        raise DataError(f"conversations must be a list of turns, found {kind_of(turns)}", place=str(place))
    messages = _system_turn(fields, place)
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise DataError(
                f"turn {number} of conversations must have `from` and `value`",
                place=str(place),
                hint="for `role` and `content` set `format: messages` and `columns: {messages: conversations}`",
            )
        role = SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise DataError(
                f"turn {number} of conversations is from the unknown {turn['from']!r}",
                place=str(place),
                hint=f"known are: {', '.join(SHAREGPT_ROLES)}",
            )
        content = turn["value"]
        if role == "function_call":
            call = read_tools(f"[{content}]" if isinstance(content, str) else content, place)
            messages.append({"role": "assistant", "content": None, "tool_calls": call})
        else:
            messages.append({"role": role, "content": content})
    messages = check_messages(messages, "conversations", place)
    check_turns(messages, place)
    return Conversation(messages, read_tools(fields.get("tools"), place), place)


def from_prompt_completion(fields: Fields, place: Place) -> Example:
    """A prompt and what follows it: both text, or both lists of messages."""
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        before = check_messages(prompt, "prompt", place)
        after = check_messages(completion, "completion", place)
        if any(message["role"] == "assistant" for message in before):
            # In this layout a prompt's assistant turns are context, but the mask trains every assistant turn.
            raise DataError(
                "the prompt holds an assistant turn, and only the completion may be trained",
                place=str(place),
                hint="give the whole conversation as one `messages` column; every assistant turn is trained then",
            )
        check_turns(after, place)
        return Conversation(before + after, read_tools(fields.get("tools"), place), place)
    return PlainText(
        _text(fields, "prompt", place, may_be_empty=prompt == ""), _text(fields, "completion", place), place
    )


def from_text(fields: Fields, place: Place) -> PlainText:
    """Running text, trained in full."""
    return PlainText("", _text(fields, "text", place), place)


FORMATS: dict[str, Format] = {
    "alpaca": Format(("instruction", "output"), ("input", "system"), from_alpaca),
    "messages": Format(("messages",), ("tools",), from_messages),
    "sharegpt": Format(("conversations",), ("system", "tools"), from_sharegpt),
    "prompt_completion": Format(("prompt", "completion"), ("tools",), from_prompt_completion),
    "text": Format(("text",), (), from_text),
}


def detect_format(columns: Collection[str]) -> str:
    """The one format whose required fields are all there.

    >>> detect_format(["instruction", "input", "output", "id"])
    'alpaca'

    Raises:
        DataError: none fits, or more than one does.
    """
    fitting = [name for name, layout in FORMATS.items() if set(layout.required) <= set(columns)]
    if len(fitting) == 1:
        return fitting[0]
    seen = ", ".join(columns) or "none"
    if fitting:
        raise DataError(
            f"the columns ({seen}) fit more than one format: {', '.join(fitting)}",
            hint=f"choose one, e.g. `format: {fitting[0]}`",
        )
    layouts = "; ".join(f"{name}: {', '.join(layout.required)}" for name, layout in FORMATS.items())
    raise DataError(
        f"no format fits the columns: {seen}",
        hint=f"set `format` and `columns`, e.g. `columns: {{instruction: {next(iter(columns), 'question')}, "
        f"output: ...}}` (formats need {layouts})",
    )


def resolve_format(name: str | None, columns: Mapping[str, str], seen: Collection[str], place: Place) -> str:
    """The format of a source, given or detected, checked against its first row.

    Args:
        name: format given in the recipe.
        columns: format field -> column, as given in the recipe.
        seen: columns of the first row.
        place: of the first row.

    Raises:
        DataError: a mapped column that is not there, an unknown field, or no format that fits.
    """
    absent = [column for column in columns.values() if column not in seen]
    if absent:
        raise DataError(
            f"`columns` names '{absent[0]}', and the columns are: {', '.join(seen)}",
            place=str(place),
            hint=_did_you_mean(absent[0], seen) or "map format fields to columns that are there",
        )
    if name is None:
        taken = set(columns.values())
        names = [*columns, *(column for column in seen if column not in taken and column not in columns)]
        try:
            name = detect_format(names)
        except DataError as error:
            problem = error.problems[0]
            raise DataError(problem.text, place=str(place), hint=problem.hint) from error
    layout = FORMATS[name]
    for field in columns:
        if field not in layout.fields:
            raise DataError(
                f"`columns` maps '{field}', which format {name} does not have",
                place=str(place),
                hint=_did_you_mean(field, layout.fields) or f"its fields are: {', '.join(layout.fields)}",
            )
    return name


def to_example(row: Mapping[str, Any], place: Place, format: str, columns: Mapping[str, str]) -> Example:
    """The example that a row holds.

    Args:
        row: column -> value.
        place: of the row.
        format: a key of FORMATS.
        columns: format field -> column, where they differ.

    Raises:
        DataError: a missing column or a value that does not fit, with the row's place.
    """
    layout = FORMATS[format]
    fields = {}
    for field in layout.fields:
        column = columns.get(field, field)
        if column in row:
            fields[field] = row[column]
    missing = [field for field in layout.required if field not in fields]
    if missing:
        column = columns.get(missing[0], missing[0])
        raise DataError(
            f"no column '{column}' for format {format}; the columns are: {', '.join(row) or 'none'}",
            place=str(place),
            hint=_did_you_mean(column, row) or f"map it in the recipe: `columns: {{{missing[0]}: <column>}}`",
        )
    return layout.convert(fields, place)


def _did_you_mean(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else ""
