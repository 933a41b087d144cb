"""Preference pairs: which key of the recipe trains the chosen answer of a file that has two."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

CHOSEN = ("chosen", "chosen_messages", "chosen_response")
PROMPTS = ("prompt", "question", "query", "instruction", "input")
"""Columns that hold the prompt of a pair, the first that is there."""


def chosen_column(columns: Collection[str]) -> str | None:
    """The column of the better answers; None where no column is named like one.

    >>> chosen_column(["prompt", "chosen", "rejected"]), chosen_column(["text"])
    ('chosen', None)
    """
    return next((column for column in CHOSEN if column in columns), None)


def preference_hint(row: Collection[str] | Mapping[str, Any], *, field: str = "") -> str:
    """Hint to train on the chosen answers, and which columns are not used then.

    Args:
        row: a row of the file, or the names of its columns.
        field: of the format that the chosen answer belongs to, where it is known.
    """
    chosen = chosen_column(row)
    assert chosen is not None  # else there is no pair to give a hint for
    value = row[chosen] if isinstance(row, Mapping) else None
    columns = {field: chosen} if field else _mapping(row, chosen, value)
    written = ", ".join(f"{name}: {column}" for name, column in columns.items() if name != column)
    unused = [column for column in row if column.startswith("rejected")]
    rest = f"; {' and '.join(f'`{column}`' for column in unused)} is not used then" if unused else ""
    return f"to train on the chosen answers of preference pairs set `columns: {{{written}}}`{rest}"


def _mapping(row: Collection[str], chosen: str, value: Any) -> dict[str, str]:
    """Format field -> column, by what is beside the chosen answer and by what it is."""
    prompt = next((column for column in PROMPTS if column in row), None)
    if "instruction" in row and isinstance(value, str):
        return {"output": chosen}
    if isinstance(value, list) and _is_whole(value):
        is_sharegpt = any(isinstance(turn, dict) and "from" in turn for turn in value)
        return {"conversations" if is_sharegpt else "messages": chosen}
    if prompt is not None:
        return {"prompt": prompt, "completion": chosen}
    return {"text" if isinstance(value, str) else "messages": chosen}


def _is_whole(turns: list[Any]) -> bool:
    """Whether turns are a whole conversation, with the user's words."""
    speakers = {turn.get("role", turn.get("from")) for turn in turns if isinstance(turn, dict)}
    return bool(speakers & {"user", "human"})
