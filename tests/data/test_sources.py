"""Reading: every kind of source, and for every malformed one the line and the way out."""

from __future__ import annotations

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from qlora_cli.data.reading import read_examples
from qlora_cli.data.sources import read_rows
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection

ROWS = [{"instruction": "Add 1 and 2.", "output": "3"}, {"instruction": "Grüße", "output": "你好 🙂"}]
GOOD = b'{"instruction": "a", "output": "b"}\n'
CHAT = b'{"messages": [{"role": "user", "content": "Hi"}, '


def read(path, **keys):
    return list(read_rows(SourceSection(path=str(path), **keys)))


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


WELL_FORMED = {
    "plain.jsonl": (as_jsonl(ROWS), [1, 2]),
    "bom.jsonl": (b"\xef\xbb\xbf" + as_jsonl(ROWS), [1, 2]),
    "crlf.jsonl": (as_jsonl(ROWS).replace(b"\n", b"\r\n"), [1, 2]),
    "blank_lines.jsonl": (b"\n" + as_jsonl(ROWS).replace(b"\n", b"\n\n"), [2, 4]),
    "no_last_line_end.jsonl": (as_jsonl(ROWS).rstrip(), [1, 2]),
    "packed.jsonl.gz": (gzip.compress(as_jsonl(ROWS)), [1, 2]),
    "array.json": (json.dumps(ROWS).encode(), [1, 1]),
    "indented.json": (json.dumps(ROWS, indent=2).encode(), [2, 6]),
    "bom_crlf.json": (b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).replace("\n", "\r\n").encode(), [2, 6]),
    "lines.json": (as_jsonl(ROWS), [1, 2]),
    "objects.json": ("\n".join(json.dumps(row, indent=1) for row in ROWS).encode(), [1, 5]),
    "table.csv": ("instruction,output\nAdd 1 and 2.,3\nGrüße,你好 🙂\n".encode(), [2, 3]),
    "bom_crlf.csv": (b"\xef\xbb\xbf" + "instruction,output\r\nAdd 1 and 2.,3\r\nGrüße,你好 🙂\r\n".encode(), [2, 3]),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_text_files_give_their_rows_and_lines(name, tmp_path):
    content, lines = WELL_FORMED[name]
    (tmp_path / name).write_bytes(content)
    rows = read(tmp_path / name)
    assert [row for _, row in rows] == ROWS
    assert [str(place) for place, _ in rows] == [f"{tmp_path / name}:{line}" for line in lines]


def test_a_csv_row_after_a_quoted_line_end_keeps_its_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('instruction,output\n"two\nlines",b\nc,"say ""hi"""\n')
    assert [(place.line, row) for place, row in read(path)] == [
        (2, {"instruction": "two\nlines", "output": "b"}),
        (4, {"instruction": "c", "output": 'say "hi"'}),
    ]


def test_ten_megabytes_in_one_row_are_read(tmp_path):
    long = "x" * 10_000_000
    (tmp_path / "a.csv").write_text(f"text\n{long}\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": long}))
    assert read(tmp_path / "a.csv")[0][1] == read(tmp_path / "a.jsonl")[0][1] == {"text": long}


MALFORMED = [
    ("empty.jsonl", b"", ":1", "the file is empty"),
    ("blank.jsonl", b"\n \n", ":1", "the file is empty"),
    ("empty.json", b"", ":1", "the file is empty"),
    ("bom_only.json", b"\xef\xbb\xbf", ":1", "the file is empty"),
    ("empty.csv", b"", ":1", "the file is empty"),
    ("empty_array.json", b"\n[\n]", ":3", "no rows"),
    ("broken.jsonl", GOOD + b'{"instruction": "a"\n' + GOOD, ":2", "broken JSON: Expecting ',' delimiter"),
    ("single_quotes.jsonl", GOOD + b"{'instruction': 'a'}\n", ":2", "broken JSON"),
    ("trailing_comma.jsonl", GOOD + b'{"instruction": "a",}\n', ":2", "broken JSON"),
    ("cut.jsonl", GOOD * 3 + b'{"instruction": "a', ":4", "Unterminated string"),
    ("two_in_a_line.jsonl", GOOD + GOOD.strip() + GOOD, ":2", "text after the object"),
    ("array_row.jsonl", GOOD + b'["a", "b"]\n', ":2", "a row must be an object, found a list"),
    ("string_row.jsonl", GOOD + b'"a"\n', ":2", "a row must be an object, found a string"),
    ("null_row.jsonl", b"null\n", ":1", "a row must be an object, found null"),
    ("array_in.jsonl", b"[\n" + GOOD + b"]\n", ":1", "broken JSON"),
    ("nan.jsonl", GOOD + b'{"instruction": "a", "output": NaN}\n', ":2", "NaN is not JSON"),
    ("infinity.jsonl", b'{"score": -Infinity}\n', ":1", "-Infinity is not JSON"),
    ("twice.jsonl", GOOD + b'{"output": "a", "output": "b"}\n', ":2", "key 'output' stands twice"),
    ("twice_deep.jsonl", CHAT + b'{"role": "user", "role": "x"}]}', ":1", "key 'role' stands twice"),
    ("latin1.jsonl", GOOD + '{"text": "Grüße"}'.encode("latin-1"), ":2", "byte 0xfc at offset 48 is not UTF-8"),
    ("utf16.jsonl", '{"text": "a"}\n'.encode("utf-16"), ":1", "byte 0xff at offset 0 is not UTF-8"),
    ("surrogate.jsonl", GOOD + b'{"text": "\\ud83d"}\n', ":2", "half of a surrogate pair"),
    ("deep.jsonl", GOOD + b'{"text": ' + b"[" * 100_000 + b"\n", ":2", "nested too deeply"),
    ("huge_number.jsonl", b'{"n": ' + b"9" * 5000 + b"}\n", ":1", "4300 digits"),
    ("broken.json", b'[\n  {"a": 1},\n  {"a" 2}\n]', ":3", "broken JSON: Expecting ':' delimiter"),
    ("trailing_comma.json", b'[\n  {"a": 1},\n]', ":3", "trailing comma"),
    ("no_comma.json", b'[\n  {"a": 1}\n  {"a": 2}\n]', ":3", "expected , or ]"),
    ("open.json", b'[\n  {"a": 1},\n  {"a": 2}\n', ":4", "never closes"),
    ("after.json", b'[{"a": 1}]\n\n[]', ":3", "text after the closing ]"),
    ("mixed.json", b'[\n  {"a": 1},\n  3\n]', ":3", "a row must be an object, found a number"),
    ("nan.json", b'[\n  {"a": "NaN",\n   "b": NaN}\n]', ":3", "NaN is not JSON"),
    ("twice.json", b'[\n  {"a": 1},\n  {"a": 1, "a": 2}\n]', ":3", "key 'a' stands twice"),
    ("string.json", b'\n"text"', ":2", "must hold an array of objects"),
    ("number.json", b"3", ":1", "must hold an array of objects"),
    ("latin1.json", '[\n{"text": "Grüße"}]'.encode("latin-1"), ":2", "is not UTF-8"),
    ("header_only.csv", b"text\n", ":1", "a header and no rows"),
    ("ragged.csv", b"instruction,output\na,b\na,b,c\n", ":3", "3 fields where the header names 2"),
    ("short.csv", b'instruction,output\n"a\n\nb",c\nd\n', ":5", "1 fields where the header names 2"),
    ("twice.csv", b"text,text\na,b\n", ":1", "column 'text' stands twice"),
    ("nameless.csv", b"text,,x\na,b,c\n", ":1", "column 2 of the header has no name"),
    ("semicolon.csv", b"instruction;output\na;b\n", ":1", "separated by ';'"),
    ("open_quote.csv", b'instruction,output\na,b\n"c,d\ne,f\n', ":3", "broken CSV"),
    ("latin1.csv", "text\na\nGrüße\n".encode("latin-1"), ":3", "is not UTF-8"),
    ("not_gzip.jsonl.gz", GOOD, "", "not a whole gzip file"),
    ("cut.jsonl.gz", gzip.compress(GOOD * 9)[:-9], "", "not a whole gzip file"),
    ("table.xlsx", b"PK", "", "unknown kind of data file '.xlsx'"),
    ("README", b"text", "", "unknown kind of data file"),
    ("a.parquet.gz", b"", "", "a gzipped .parquet file is not read"),
    ("not.parquet", b"text", "", "not a Parquet file"),
    ("not.arrow", b"text", "", "not an Arrow file"),
]


@pytest.mark.parametrize(("name", "content", "line", "fragment"), MALFORMED, ids=[case[0] for case in MALFORMED])
def test_a_malformed_file_is_refused_at_its_line(name, content, line, fragment, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    problem = caught.value.problems[0]
    assert problem.place == f"{path}{line}"
    assert fragment in problem.text
    assert "\n" not in problem.text
    assert caught.value.exit_code == 2


def test_all_broken_lines_are_reported_and_the_rest_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes((GOOD + b"{broken\n") * 30)
    with pytest.raises(DataError) as caught:
        read(path)
    *shown, rest = caught.value.problems
    assert [problem.place for problem in shown] == [f"{path}:{line}" for line in range(2, 41, 2)]
    assert rest.text == "... and 10 more problems like these"


def test_a_missing_file_is_answered_with_close_names(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"hint: did you mean '.*/train\.jsonl'\?"):
        read(tmp_path / "trian.jsonl")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"folder '.*/nowhere' does not exist"):
        read(tmp_path / "nowhere" / "train.jsonl")


@pytest.mark.parametrize("key", ["split", "subset", "revision"])
def test_keys_of_hub_datasets_are_refused_for_a_local_file(key, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError, match=rf"`{key}: x` is for Hub datasets"):
        read(tmp_path / "a.jsonl", **{key: "x"})


def test_tool_arguments_keep_to_their_own_row(tmp_path):
    calls = [{"name": "a", "arguments": {"city": "Bonn"}}, {"name": "b", "arguments": {"zip": 1}}]
    rows = [{"calls": [call]} for call in calls]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row for _, row in read(tmp_path / "a.jsonl")] == rows
    assert [row for _, row in read(tmp_path / "a.parquet")] == rows


def test_columnar_files_and_saved_folders_give_numbered_rows(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(tmp_path / "splits")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    for path in (tmp_path / "a.parquet", arrow, tmp_path / "saved"):
        assert [(str(place), row) for place, row in read(path)] == [
            (f"{path}#row {number}", row) for number, row in enumerate(ROWS, start=1)
        ]
    assert [row for _, row in read(tmp_path / "splits")] == ROWS
    assert [row for _, row in read(tmp_path / "splits", split="test")] == ROWS[1:]


def test_a_split_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="no split 'train'\nhint: set `split` to one of: test"):
        read(tmp_path / "splits")


def test_a_split_of_a_dataset_without_splits_is_refused(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="has no splits"):
        read(tmp_path / "saved", split="train")


def test_a_folder_of_data_files_is_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(as_jsonl(ROWS[:1]))
    (tmp_path / "a.csv").write_bytes(b"text\nx\n")
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(ROWS[1:]).encode()))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".cache").mkdir()
    assert [(str(place), row) for place, row in read(tmp_path)] == [
        (f"{tmp_path}/a.csv:2", {"text": "x"}),
        (f"{tmp_path}/b.jsonl:1", ROWS[0]),
        (f"{tmp_path}/c.json.gz:1", ROWS[1]),
    ]


def test_a_hub_id_that_does_not_load_says_where_it_looked(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="not a file or folder here, and as a Hub dataset it does not load"):
        read("no-such-owner/no-such-dataset")


ALPACA_ROWS = [
    (b'{"instruction": "a", "input": "", "answer": "b"}', "no format fits the columns: instruction, input, answer"),
    (GOOD + b'{"instruction": "a"}', "no column 'output' for format alpaca; the columns are: instruction"),
    (GOOD + b'{"instruction": "a", "output": null}', "output must be a string, found null"),
    (GOOD + b'{"instruction": "a", "output": 3}', "output must be a string, found a number"),
    (GOOD + b'{"instruction": "a", "output": " "}', "output is empty"),
    (GOOD + b'{"instruction": ["a"], "output": "b"}', "instruction must be a string, found a list"),
]


@pytest.mark.parametrize(("content", "fragment"), ALPACA_ROWS)
def test_a_row_that_does_not_fit_its_format_is_refused_at_its_line(content, fragment, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_examples(SourceSection(path=str(path)))
    assert caught.value.problems[0].place == f"{path}:{content.count(b'{')}"
    assert fragment in caught.value.problems[0].text
