"""Rows with a question, its choices and the right one, in the columns that public data sets have."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_cli.data.example import Place, Row
from qlora_cli.data.read.columns import MISSING, value_at
from qlora_cli.data.read.error_text import names_of, row_error, shown

COLUMNS = {
    "question": ("question", "ctx", "question_stem", "goal"),
    "choices": ("choices", "endings", "options"),
    "answer": ("answer", "answerKey", "label", "gold"),
}
"""Field -> columns that hold it: MMLU, ARC, HellaSwag, OpenBookQA and the like."""


@dataclass(frozen=True)
class ChoiceRow:
    """One question with its choices."""

    question: str
    choices: tuple[str, ...]
    right: int
    """Index of the right choice."""

    place: Place


def has_choices(row: Row, columns: Mapping[str, str]) -> bool:
    """Whether a row is a question with choices.

    >>> has_choices({"question": "?", "choices": ["a", "b"], "answer": 1}, {}), has_choices({"question": "?"}, {})
    (True, False)
    """
    return all(_value(row, columns, field) is not MISSING for field in COLUMNS)


def to_choice_row(row: Row, place: Place, columns: Mapping[str, str]) -> ChoiceRow:
    """The question of a row.

    The answer is an index from 0, a letter from A, a label of the choices, or the text of one.

    >>> arc = {"question": "?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    >>> to_choice_row(arc, Place("arc", 1, 1), {}).right
    1

    Raises:
        RowError: with the column that is missing or does not fit.
    """
    values = {field: _value(row, columns, field) for field in COLUMNS}
    for field, value in values.items():
        if value is MISSING:
            wanted = columns.get(field) or " or ".join(COLUMNS[field])
            hint = f"name it in `columns: {{{field}: COLUMN}}`; the row has {names_of(row)}"
            raise row_error(f"has no column '{wanted}' for the {field}", place, hint)
    question = values["question"]
    if not isinstance(question, str) or not question.strip():
        raise row_error(f"the question is {shown(question)}, not text", place)
    texts, labels = _choices(values["choices"], place)
    right = _right(values["answer"], texts, labels)
    if right is None:
        raise row_error(f"the answer {shown(values['answer'])} is none of the {len(texts)} choices", place)
    return ChoiceRow(question, tuple(texts), right, place)


def _choices(value: Any, place: Place) -> tuple[list[str], list[str]]:
    """Texts and labels."""
    texts = value.get("text") if isinstance(value, Mapping) else value
    labels = value.get("label") if isinstance(value, Mapping) else None
    if isinstance(texts, Sequence) and texts and all(isinstance(text, Mapping) for text in texts):
        labels, texts = [text.get("label") for text in texts], [text.get("text") for text in texts]
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
        raise row_error(f"the choices are {shown(value)}, not a list of two texts or more", place)
    if not isinstance(labels, list) or len(labels) != len(texts):
        labels = list(string.ascii_uppercase[: len(texts)])
    return texts, [str(label) for label in labels]


def _right(answer: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
    """
    >>> _right(2, "xyz", "ABC"), _right("b", "xyz", "ABC"), _right("1", "xyz", "123"), _right("z", "xyz", "ABC")
    (2, 1, 0, 2)
    """
    if isinstance(answer, bool):
        return None
    if isinstance(answer, int):
        return answer if 0 <= answer < len(texts) else None
    if not isinstance(answer, str):
        return None
    written = answer.strip()
    for known in (labels, [label.lower() for label in labels], texts):
        if written in known:
            return list(known).index(written)
    return int(written) if written.isdecimal() and int(written) < len(texts) else None


def _value(row: Row, columns: Mapping[str, str], field: str) -> Any:
    names = (columns[field],) if field in columns else COLUMNS[field]
    return next((value for name in names if (value := value_at(row, name)) is not MISSING), MISSING)
