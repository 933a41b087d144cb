"""Columns: each is read once, where the recipe says or under its own name; what is not read is reported."""

from __future__ import annotations

import pytest

from qlora_cli.data.example import Place
from qlora_cli.data.read.columns import left_out_by, path_of, unread_columns, value_at, without_ignored
from qlora_cli.data.read.formats import read_columns, resolve_format, to_example
from qlora_cli.data.rejection import RowError
from qlora_cli.errors import DataError

PLACE = Place("a.jsonl", 3, 3)
HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}


def contents(row, columns=None):
    columns = columns or {}
    example = to_example(row, PLACE, resolve_format(None, columns, row, PLACE), columns)
    return [(message["role"], message["content"]) for message in example.messages]


def unread(row, columns=None):
    columns = columns or {}
    return unread_columns(row, read_columns(row, resolve_format(None, columns, row, PLACE), columns))


def test_a_mapped_column_is_not_read_under_its_own_name_too():
    row = {"input": "Capital of France?", "target": "Paris"}
    columns = {"instruction": "input", "output": "target"}
    assert contents(row, columns) == [("user", "Capital of France?"), ("assistant", "Paris")]


@pytest.mark.parametrize("swapped", [{"instruction": "output", "output": "instruction"}])
def test_columns_that_are_swapped_are_read_swapped(swapped):
    assert contents({"instruction": "a", "output": "b"}, swapped) == [("user", "b"), ("assistant", "a")]


def test_a_column_that_is_mapped_twice_is_refused():
    with pytest.raises(DataError, match="reads 'q' twice, as instruction and input"):
        resolve_format(None, {"instruction": "q", "input": "q", "output": "a"}, {"q": "x", "a": "y"}, PLACE)


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        (
            {"instruction": "Sum up.", "context": "Long text.", "response": "Short."},
            {"output": "response"},
            [("user", "Sum up.\n\nLong text."), ("assistant", "Short.")],
        ),
        (
            {"instruction": "a", "output": "b", "system_prompt": "Be brief."},
            {},
            [("system", "Be brief."), ("user", "a"), ("assistant", "b")],
        ),
        (
            {"system": "Be brief.", "messages": [HI, HELLO]},
            {},
            [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")],
        ),
        (
            {"system": "s", "messages": [{"role": "system", "content": "s"}, HI, HELLO]},
            {},
            [("system", "s"), ("user", "Hi"), ("assistant", "Hello")],
        ),
    ],
)
def test_columns_that_other_files_name_otherwise_are_read(row, columns, expected):
    assert contents(row, columns) == expected
    assert unread(row, columns) == []


def test_two_system_prompts_that_differ_are_refused():
    with pytest.raises(RowError, match=r"in its column and another.*\nhint: keep one"):
        contents({"system": "a", "messages": [{"role": "system", "content": "b"}, HI, HELLO]})


@pytest.mark.parametrize(
    "history",
    [
        [["Rain?", "Yes."]],
        '[["Rain?", "Yes."]]',
        [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "Yes."}],
    ],
)
def test_a_history_is_the_first_turns(history):
    row = {"instruction": "And tomorrow?", "output": "Sunny.", "history": history, "system": "s"}
    assert contents(row) == [
        ("system", "s"),
        ("user", "Rain?"),
        ("assistant", "Yes."),
        ("user", "And tomorrow?"),
        ("assistant", "Sunny."),
    ]


@pytest.mark.parametrize("history", [None, [], "", " "])
def test_an_empty_history_is_none(history):
    assert len(contents({"instruction": "a", "output": "b", "history": history})) == 2


@pytest.mark.parametrize("history", ["Rain? Yes.", [["Rain?"]], [["a", "b", "c"]], [["a", 3]], {"a": 1}, ["a", "b"]])
def test_a_history_that_is_none_of_pairs_is_refused(history):
    with pytest.raises(RowError, match="history"):
        contents({"instruction": "a", "output": "b", "history": history})


def test_functions_of_the_older_api_are_tools():
    row = {"messages": [HI, HELLO], "functions": [{"name": "f", "parameters": {}}]}
    assert to_example(row, PLACE, "messages", {}).tools == [{"name": "f", "parameters": {}}]
    assert unread(row) == []


@pytest.mark.parametrize("answer", ["output", "answer", "response", "target"])
def test_text_beside_an_answer_is_refused_and_each_way_of_the_hint_is_one(answer):
    row = {"text": "Name three primes.", answer: "2, 3, 5"}
    with pytest.raises(DataError, match=rf"instruction: text, output: {answer}.*`format: text`"):
        resolve_format(None, {}, row, PLACE)
    assert contents(row, {"instruction": "text", "output": answer})[1] == ("assistant", "2, 3, 5")
    assert resolve_format("text", {}, row, PLACE) == "text"
    assert unread_columns(row, read_columns(row, "text", {})) == [answer]


def test_text_beside_what_is_no_answer_is_text():
    row = {"text": "words", "url": "http://a", "timestamp": "2019"}
    assert resolve_format(None, {}, row, PLACE) == "text"
    assert unread(row) == ["url", "timestamp"]


def test_a_system_prompt_or_tools_beside_a_prompt_of_plain_text_are_refused():
    for column, value in (("system", "Be brief."), ("tools", [{"name": "f"}])):
        with pytest.raises(RowError, match=rf"{column} has no place.*\nhint: .*`ignore: \[{column}\]`"):
            to_example({"prompt": "a", "completion": "b", column: value}, PLACE, "prompt_completion", {})


def test_columns_that_hold_nothing_are_not_told():
    row = {"text": "a", "b": None, "c": "", "d": [], "e": {}, "f": float("nan"), "g": 0, "h": False}
    assert unread(row) == ["g", "h"]


SEED = {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}], "id": "7"}
PATHS = {"input": "instances[0].input", "output": "instances[0].output"}


def test_a_column_inside_another_is_read_by_its_path():
    assert contents(SEED, PATHS) == [("user", "Add.\n\n1 2"), ("assistant", "3")]
    assert contents(
        {"data": {"q": {"text": "a"}}, "out": ["x", "b"]}, {"instruction": "data.q.text", "output": "out[1]"}
    )


def test_what_no_path_leads_to_is_told():
    assert unread(SEED, PATHS) == ["id"]
    more = {**SEED, "instances": [{"input": "1 2", "output": "3", "note": "n"}, {"input": "a", "output": "b"}]}
    assert unread(more, PATHS) == ["id", "instances[0].note", "instances[1]"]


def test_a_column_with_a_dot_in_its_name_is_that_column():
    assert path_of("data.q", ["data.q"]) == ("data.q",)
    assert value_at({"data.q": "a", "data": {"q": "b"}}, "data.q") == "a"


@pytest.mark.parametrize("path", ["instances[1].output", "instances.output", "instances[0].ouput", "nothing[0].output"])
def test_a_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(DataError, match="`columns` names"):
        resolve_format(None, {"output": path}, SEED, PLACE)


def test_a_later_row_that_lacks_the_path_is_refused_by_its_name():
    with pytest.raises(RowError, match=r"no column 'instances\[0\].output'"):
        to_example({"instruction": "a", "instances": []}, PLACE, "alpaca", PATHS)


def test_ignored_columns_are_not_there():
    row = {"text": "a", "messages": [HI, HELLO], "id": 3}
    with pytest.raises(DataError, match="fit more than one format"):
        resolve_format(None, {}, row, PLACE)
    bare = without_ignored(row, ("text", "id"))
    assert resolve_format(None, {}, bare, PLACE) == "messages"
    assert row["id"] == 3


@pytest.mark.parametrize(
    ("value", "given", "is_left_out"),
    [
        (False, False, True),
        (True, False, False),
        ("False", False, True),
        (0, False, False),
        (False, 0, False),
        (0, 0, True),
        ("0", 0, True),
        (1.0, 1, True),
        ("de", ("de", "fr"), True),
        ("en", ("de", "fr"), False),
        (None, False, False),
    ],
)
def test_rows_are_left_out_by_the_very_value(value, given, is_left_out):
    assert (left_out_by({"x": value}, {"x": given}) == "x") is is_left_out
    assert left_out_by({}, {"x": given}) is None
