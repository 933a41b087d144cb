"""The mapping that the hint proposes, on columns of public datasets and on odd ones."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.read.column_mapping import mapping_hint, resolve_source, suggested_columns
from qlora_cli.data.read.formats import resolve_format, to_example
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection
from tests.data.read.public_layouts import AMBIGUOUS, ASKED, BY_VALUE, NAMED, SAID, UNNAMED

PLACE = Place("rows.jsonl", 1, 1)
SOURCE = SourceSection(path="rows.jsonl")


def pasted(hint):
    """The source that a hint says to write."""
    [line] = re.findall(r"`train: (\{.*\})`", hint)
    return SourceSection.model_validate(yaml.safe_load(line))


def examples_of(source, rows):
    layout = resolve_format(source.format, source.columns, rows[0], PLACE)
    return [to_example(row, PLACE, layout, source.columns) for row in rows]


@pytest.mark.parametrize(("name", "rows"), [*UNNAMED.items(), *AMBIGUOUS.items()])
def test_what_the_hint_says_reads_every_row_of_a_public_layout(name, rows):
    with pytest.raises(DataError) as caught:
        resolve_source(SOURCE, [(PLACE, row) for row in rows])
    assert len(examples_of(pasted(caught.value.problems[0].hint), rows)) == len(rows)


@pytest.mark.parametrize(("name", "rows"), NAMED.items())
def test_a_layout_that_is_read_by_itself_needs_no_mapping(name, rows):
    assert suggested_columns(rows).settings == {}


@pytest.mark.parametrize("name", ["google/boolq", "cais/mmlu"])
def test_an_answer_that_is_a_number_or_a_truth_value_is_proposed_and_read(name):
    [first, *_] = examples_of(pasted(mapping_hint(SOURCE, BY_VALUE[name])), BY_VALUE[name])
    assert first.messages[-1]["content"] in ("false", "0")


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("rajpurkar/squad", {"instruction": "question", "input": "context", "output": "answers.text[0]"}),
        ("mandarjoshi/trivia_qa", {"instruction": "question", "output": "answer.value"}),
        ("Helsinki-NLP/opus_books", {"instruction": "translation.en", "output": "translation.de"}),
        ("stanford_alpaca seed_tasks", {"output": "instances[0].output"}),
    ],
)
def test_an_answer_inside_an_object_is_found_and_read(name, columns):
    source = pasted(mapping_hint(SOURCE, BY_VALUE[name]))
    assert source.columns == columns
    assert len(examples_of(source, BY_VALUE[name])) == 3


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("openai/gsm8k", {"instruction": "question", "output": "answer"}),
        ("databricks/databricks-dolly-15k", {"input": "context", "output": "response"}),
        ("Open-Orca/OpenOrca", {"system": "system_prompt", "instruction": "question", "output": "response"}),
        ("b-mc2/sql-create-context", {"instruction": "question", "input": "context", "output": "answer"}),
        ("meta-math/MetaMathQA", {"instruction": "query", "output": "response"}),
        ("allenai/sciq", {"instruction": "question", "input": "support", "output": "correct_answer"}),
        ("allenai/ai2_arc", {"instruction": "question", "output": "answerKey"}),
        ("truthfulqa/truthful_qa", {"instruction": "question", "output": "best_answer"}),
        ("HuggingFaceH4/ultrafeedback_binarized", {"messages": "chosen"}),
        ("Anthropic/hh-rlhf", {"text": "chosen"}),
    ],
)
def test_the_roles_are_those_that_a_reader_would_give(name, columns):
    assert suggested_columns(UNNAMED[name]).columns == columns


def test_ids_and_categories_are_not_taken_for_prompts():
    rows = [{"subject": "history", "uid": f"x-{n}", "first": ASKED[n], "second": SAID[n]} for n in range(3)]
    assert suggested_columns(rows).columns == {"instruction": "first", "output": "second"}


def test_the_format_of_the_recipe_is_kept_where_it_can_be():
    rows = UNNAMED["openai/gsm8k"]
    source = SOURCE.model_copy(update={"format": "prompt_completion"})
    assert suggested_columns(rows, "prompt_completion").columns == {"prompt": "question", "completion": "answer"}
    assert "format: prompt_completion" in mapping_hint(source, rows)


def test_a_format_that_all_rows_lack_the_columns_of_is_one_error_with_the_whole_line():
    source = SourceSection(path="rows.jsonl", format="alpaca")
    with pytest.raises(DataError) as caught:
        resolve_source(source, [(PLACE, row) for row in UNNAMED["openai/gsm8k"]])
    [problem] = caught.value.problems
    assert problem.text.startswith("no column 'instruction' for format alpaca")
    assert pasted(problem.hint).columns == {"instruction": "question", "output": "answer"}


@pytest.mark.parametrize(
    "columns",
    [{"instruction": "qestion", "output": "answer"}, {"question": "question", "output": "answer"}],
)
def test_a_wrong_mapping_is_answered_with_a_right_one(columns):
    with pytest.raises(DataError) as caught:
        resolve_source(SourceSection(path="rows.jsonl", columns=columns), [(PLACE, UNNAMED["openai/gsm8k"][0])])
    assert pasted(caught.value.problems[0].hint).columns == {"instruction": "question", "output": "answer"}


def test_the_other_keys_of_the_source_stand_in_the_line():
    source = SourceSection(path="some/rows", split="test", subset="main", weight=2)
    assert pasted(mapping_hint(source, UNNAMED["openai/gsm8k"])) == source.model_copy(
        update={"columns": {"instruction": "question", "output": "answer"}}
    )


def test_one_of_several_sources_is_written_as_an_item_of_their_list():
    hint = mapping_hint(SOURCE, UNNAMED["openai/gsm8k"], alone=False)
    assert hint == "write `- {path: rows.jsonl, columns: {instruction: question, output: answer}}` in the recipe"


def test_columns_that_are_not_read_are_named():
    assert mapping_hint(SOURCE, UNNAMED["lighteval/MATH"]).endswith(" (not read then: level, type)")


def test_rows_without_any_text_are_answered_with_what_they_hold():
    hint = mapping_hint(SOURCE, [{"x": 1.5, "y": [1, 2]}])
    assert "`x` holds a number, `y` holds a list" in hint


PRINTABLE = st.characters(exclude_categories=["C", "Z"]) | st.just(" ")
NAMES = st.text(PRINTABLE, min_size=1, max_size=12).map(str.strip).filter(bool)


@given(question=NAMES, answer=NAMES, path=NAMES)
@settings(max_examples=60, deadline=None)
def test_any_name_of_a_column_can_be_pasted(question, answer, path):
    rows = [{question: ASKED[n], answer: SAID[n]} for n in range(3)]
    suggestion = suggested_columns(rows)
    if question == answer or suggestion is None or not suggestion.columns:
        return
    source = pasted(mapping_hint(SourceSection(path=path), rows))
    assert (source.path, source.columns) == (path, suggestion.columns)
    assert len(examples_of(source, rows)) == 3


def test_a_conversation_in_a_column_of_any_name_is_found():
    rows = [
        {"key": n, "the talk": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
        for n in range(3)
    ]
    [first, *_] = examples_of(pasted(mapping_hint(SOURCE, rows)), rows)
    assert isinstance(first, Conversation)
