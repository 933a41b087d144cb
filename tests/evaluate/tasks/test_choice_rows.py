"""Rows of multiple choice as data sets on the Hub have them."""

import pytest

from qlora_cli.data.example import Place
from qlora_cli.errors import DataError
from qlora_cli.evaluate.tasks.choice_rows import to_choice_row

PLACE = Place("rows.jsonl", line=7, row=7)

# The columns of cais/mmlu, allenai/ai2_arc (letters and, in some rows, numbers), Rowan/hellaswag, allenai/openbookqa.
MMLU = {"question": "Find the degree.", "subject": "abstract_algebra", "choices": ["0", "4", "2", "6"], "answer": 1}
ARC = {
    "id": "M_1",
    "question": "Why?",
    "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
    "answerKey": "C",
}
ARC_NUMBERED = {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "2"}
HELLASWAG = {"ctx": "A man sits.", "endings": ["He stands.", "He sings.", "He is.", "She."], "label": "3"}
OPENBOOK = {"question_stem": "The sun", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"}
AS_OBJECTS = {"question": "Why?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}], "answer": "B"}
AS_TEXT = {"question": "Why?", "options": ["yes", "no"], "answer": "no"}


@pytest.mark.parametrize(
    ("row", "right", "count"),
    [
        (MMLU, 1, 4),
        (ARC, 2, 3),
        (ARC_NUMBERED, 1, 3),
        (HELLASWAG, 3, 4),
        (OPENBOOK, 0, 2),
        (AS_OBJECTS, 1, 2),
        (AS_TEXT, 1, 2),
    ],
)
def test_rows_of_public_data_sets_are_read(row, right, count):
    read = to_choice_row(row, PLACE, {})
    assert (read.right, len(read.choices)) == (right, count)


def test_columns_can_be_named():
    row = {"q": "?", "a": ["x", "y"], "gold_index": 1}
    assert to_choice_row(row, PLACE, {"question": "q", "choices": "a", "answer": "gold_index"}).right == 1


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"answer": 4}, "the answer 4 is none of the 4 choices"),
        ({"answer": "E"}, "the answer 'E' is none"),
        ({"answer": True}, "the answer true is none"),
        ({"choices": ["only"]}, "not a list of two texts or more"),
        ({"choices": "a"}, "not a list of two texts or more"),
        ({"question": ""}, "the question is ''"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_with_its_place(change, fragment):
    with pytest.raises(DataError, match=fragment) as caught:
        to_choice_row({**MMLU, **change}, PLACE, {})
    assert caught.value.problems[0].place == "rows.jsonl:7"


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="has no column 'answer or answerKey or label or gold'"):
        to_choice_row({"question": "?", "choices": ["a", "b"]}, PLACE, {})
