"""Parts of a row that training never sees: columns, keys of messages, and nulls that were taken out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from qlora_cli.data.clean import text_keys
from qlora_cli.data.example import Conversation, Example, Message, Place, Row
from qlora_cli.data.read.columns import unread_columns, value_at
from qlora_cli.data.read.content import CALL_PARTS, VALUE_KEYS, value_key
from qlora_cli.data.read.error_text import MAX_NAMES, has_null_keys, holds_something, names_of
from qlora_cli.data.read.formats import read_columns
from qlora_cli.data.read.message_flags import OWN_FLAGS
from qlora_cli.data.read.messages import REASONING_FIELDS
from qlora_cli.data.read.tool_calls import ARGUMENT_KEYS, AROUND_A_CALL
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.report import Finding
from qlora_cli.data.token_row import TokenRow
from qlora_cli.errors import DataError

MAX_COUNTED = 1000
"""Names that are counted of each kind; files whose rows have keys of their own, such as ids, have no end of them."""

TURNS = ("messages", "conversations", "prompt", "completion", "history")
READ_KEYS = frozenset({"role", "content", "tool_calls", *OWN_FLAGS, *REASONING_FIELDS})
RESULT_KEYS = READ_KEYS | {"name", "tool_call_id"}
"""Keys of a message, and of a tool's result, that are read here or held against the rendering. A result's name and
number say which call it belongs to, and templates know that by its place."""

_CALL_KEYS = frozenset({"type", "function", *AROUND_A_CALL})
_PART_KEYS = frozenset({"type", *AROUND_A_CALL, "name", "function", *ARGUMENT_KEYS, *CALL_PARTS, *VALUE_KEYS})


class UnreadKind(StrEnum):
    """Kind of a part without effect; the value is its name in tables."""

    COLUMNS = "columns that are not read"
    KEYS = "keys of messages that nothing reads"
    NULLS = "nulls taken out of tool calls and schemas"


Mention = tuple[UnreadKind, str]
"""Kind of a part without effect, and its name."""


@dataclass
class Mentions:
    """Counts of what had no effect, over many rows."""

    rows: Counter[UnreadKind] = field(default_factory=Counter)
    names: dict[UnreadKind, Counter[str]] = field(default_factory=dict)
    first: dict[UnreadKind, Place] = field(default_factory=dict)

    def add(self, found: Iterable[Mention], place: Place) -> None:
        """Count what was found in one row."""
        by_kind: dict[UnreadKind, set[str]] = {}
        for kind, name in found:
            by_kind.setdefault(kind, set()).add(name)
        for kind, names in by_kind.items():
            self.rows[kind] += 1
            self.first.setdefault(kind, place)
            self._count(kind, dict.fromkeys(sorted(names), 1))

    def merge(self, other: Mentions) -> None:
        """Add the counts of later rows."""
        self.rows += other.rows
        for kind, names in other.names.items():
            self.first.setdefault(kind, other.first[kind])
            self._count(kind, names)

    def _count(self, kind: UnreadKind, names: Mapping[str, int]) -> None:
        counts = self.names.setdefault(kind, Counter())
        for name, number in names.items():
            if name in counts or len(counts) < MAX_COUNTED:
                counts[name] += number

    def findings(self) -> list[Finding]:
        """One for each kind that was found, with the names and how many rows have each."""
        return [self._finding(kind) for kind in UnreadKind if self.rows[kind]]

    def _finding(self, kind: UnreadKind) -> Finding:
        counts = self.names[kind].most_common()
        shown = [f"{names_of([name])} ({number:,} row{'s' * (number != 1)})" for name, number in counts[:MAX_NAMES]]
        if len(counts) > MAX_NAMES:
            at_least = "at least " if len(counts) == MAX_COUNTED else ""
            shown.append(f"and {at_least}{len(counts) - MAX_NAMES:,} more")
        listed = ", ".join(name for name, _ in counts[:MAX_NAMES] if name.isidentifier())
        hint = f"`ignore: [{listed}]` under the source says that they are not meant" if listed else ""
        if listed and kind == UnreadKind.COLUMNS:
            hint = f"map a column to a field in `columns`; {hint}"
        place = str(self.first[kind])
        return Finding(kind.value, "noted", self.rows[kind], place, ", ".join(shown), hint)


def unread_in_row(row: Row, format: str, columns: Mapping[str, str]) -> list[Mention]:
    """Parts of a row that never reach a chat template.

    Args:
        row: without the columns that are to have no effect.
        format: a key of FORMATS.
        columns: format field -> column or path, as the recipe maps them.
    """
    choice = read_columns(row, format, columns)
    found: list[Mention] = []
    if choice.unread or choice.parted:
        found += [(UnreadKind.COLUMNS, name) for name in unread_columns(row, choice)]
    for name, column in choice.taken:
        if name in TURNS:
            value = value_at(row, column)
            if isinstance(value, list | dict):
                found += _unread_in_turns(value if isinstance(value, list) else [value])
        elif name == "tools" and has_null_keys(value_at(row, column)):
            found.append((UnreadKind.NULLS, column))
    return found


def _unread_in_turns(turns: list[Any]) -> Iterator[Mention]:
    for turn in turns:
        if not isinstance(turn, dict):
            continue
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):
            for part in content:
                yield from _unread_in_part(part)
        for key in ("tool_calls", "function_call"):
            if key in turn and has_null_keys(turn[key]):
                yield UnreadKind.NULLS, key


def _unread_in_part(part: Any) -> Iterator[Mention]:
    if not isinstance(part, dict):
        return
    is_call = part.get("type") in CALL_PARTS
    known = _PART_KEYS if is_call else {"type", value_key(part)}
    for key, value in part.items():
        if key not in known and holds_something(value):
            yield UnreadKind.KEYS, f"content.{key}"
    if is_call and has_null_keys(part):
        yield UnreadKind.NULLS, str(part["type"])


class KeyCheck:
    """Finds keys of messages that the chat template does not print.

    A row that has a key unknown here is rendered again without it: if the tokens are the same, nothing read it. Where
    the template's source does not even hold the name, one such proof stands for all rows.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._unread: set[str] = set()
        """Names that a rendering has shown to have no effect and that the template's source does not hold."""

    def unread_keys(self, example: Example, row: TokenRow) -> list[Mention]:
        """The keys of an example's messages that had no effect on its tokens."""
        if not isinstance(example, Conversation):
            return []
        names = _other_keys(example.messages)
        if not names:
            return []
        open_names = names - self._unread
        if open_names and not self._has_effect(example, row, open_names):
            unread = names
        else:
            unread = (names & self._unread) | {
                name for name in open_names if len(open_names) > 1 and not self._has_effect(example, row, {name})
            }
        self._unread |= {name for name in unread if name.rpartition(".")[2] not in self._renderer.template}
        return [(UnreadKind.KEYS, name) for name in sorted(unread)]

    def _has_effect(self, example: Conversation, row: TokenRow, names: set[str]) -> bool:
        bare = replace(example, messages=[_without(message, names) for message in example.messages])
        [other] = self._renderer.render_each([bare])
        return isinstance(other, DataError) or (other.input_ids, other.labels) != (row.input_ids, row.labels)


def _other_keys(messages: Iterable[Message]) -> set[str]:
    """Keys of messages and of their calls that are not known here; those of a call as `tool_calls.KEY`."""
    names: set[str] = set()
    for message in messages:
        if len(message) > 2 or "content" not in message:
            known = RESULT_KEYS if message["role"] == "tool" else READ_KEYS
            names.update(key for key in message if key not in known and key not in text_keys(message))
            for call in message.get("tool_calls", ()):
                names.update(f"tool_calls.{key}" for key in call if key not in _CALL_KEYS)
                inside = (key for key in call["function"] if key not in ("name", "arguments"))
                names.update(f"tool_calls.{key}" for key in inside)
    return names


def _without(message: Message, names: set[str]) -> Message:
    bare = {key: value for key, value in message.items() if key not in names}
    if "tool_calls" in bare and any(name.startswith("tool_calls.") for name in names):
        in_calls = {name.removeprefix("tool_calls.") for name in names if name.startswith("tool_calls.")}
        bare["tool_calls"] = [
            {
                key: {name: value for name, value in item.items() if name not in in_calls}
                if key == "function"
                else item
                for key, item in call.items()
                if key not in in_calls
            }
            for call in bare["tool_calls"]
        ]
    return bare
