"""Columns that forbid training: refused with what to type, and what is typed leads on."""

from __future__ import annotations

import re

import pytest

from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.read.examples import example_of
from qlora_cli.data.read.formats import resolve_format
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.recipe.data_schema import SourceSection

PLACE = Place("a.jsonl", 3, 3)
TURNS = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def read(row, **keys):
    source = SourceSection(path="a.jsonl", **keys)
    seen = {column: value for column, value in row.items() if column not in source.ignore}
    return example_of(row, PLACE, source, resolve_format(source.format, source.columns, seen, PLACE))[0]


FORBIDDING = [
    {"label": False},
    {"label": "False"},
    {"kto_tag": False},
    {"train": False},
    {"loss": False},
    {"masked": True},
    {"ignore": True},
    {"weight": 0},
    {"weight": 0.5},
    {"loss_weight": 0.0},
    {"images": ["a.jpg"]},
    {"image": {"bytes": "x"}},
    {"audios": ["a.wav"]},
    {"videos": ["a.mp4"]},
    {"chosen": "Hello!", "rejected": "no"},
]


@pytest.mark.parametrize("columns", FORBIDDING, ids=str)
def test_a_column_that_forbids_training_is_refused_and_the_hint_leads_on(columns):
    row = {**TURNS, **columns}
    with pytest.raises(RowError) as caught:
        read(row)
    assert caught.value.cause is RejectionReason.CONTRADICTED
    [problem] = caught.value.problems
    column = next(iter(columns))
    assert f"'{column}'" in problem.text
    assert f"`ignore: [{column}]`" in problem.hint
    assert isinstance(read(row, ignore=(column,)), Conversation)
    if left_out := re.search(r"leave_out: \{(\w+): (\w+)\}", problem.hint):
        assert left_out.group(1) == column
        with pytest.raises(RowError) as caught:
            read(row, leave_out={column: columns[column]})
        assert caught.value.cause is RejectionReason.LEFT_OUT


@pytest.mark.parametrize(
    "columns",
    [
        {"label": True},
        {"label": 0},
        {"label": "spam"},
        {"label": None},
        {"train": True},
        {"masked": False},
        {"weight": 1},
        {"weight": 1.0},
        {"weight": None},
        {"images": []},
        {"image": None},
        {"rejected": "no"},
        {"rejected_response": "no"},
        {"objective": "x", "ranking": 3},
    ],
    ids=str,
)
def test_a_column_that_does_not_is_read_on(columns):
    assert isinstance(read({**TURNS, **columns}), Conversation)


def test_a_column_that_is_mapped_forbids_nothing():
    row = {"image": "Describe a sunset.", "label": "Red."}
    assert isinstance(read(row, columns={"instruction": "image", "output": "label"}), Conversation)
