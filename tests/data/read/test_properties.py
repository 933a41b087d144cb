"""What is written in any kind of file is read back; a file with wrong bytes is read or refused at one of its lines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from itertools import chain

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_cli.data.example import Conversation, PlainText
from qlora_cli.data.read.examples import read_examples
from qlora_cli.recipe.data_schema import SourceSection
from tests.data.read.reading_checks import read_whole

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

words = st.text(min_size=1, max_size=12).filter(str.strip)
exchanges = st.tuples(st.text(max_size=12), words).map(
    lambda texts: [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
)
systems = st.just([]) | st.text(max_size=5).map(lambda text: [{"role": "system", "content": text}])
conversations = st.lists(
    st.builds(lambda *parts: list(chain(*parts)), systems, exchanges, exchanges | st.just([])), min_size=1, max_size=4
)
pairs = st.lists(st.tuples(st.just("") | words, words), min_size=1, max_size=5)


def lines_before(text, marks):
    """Line, from 1, of each position in the text."""
    return [text.count("\n", 0, mark) + 1 for mark in marks]


def as_lines(rows, *, ensure_ascii):
    """JSON Lines, and the lines of the rows."""
    text = "\n\n".join(json.dumps(row, ensure_ascii=ensure_ascii) for row in rows)
    return text, [1 + 2 * at for at in range(len(rows))]


def as_array(rows, *, ensure_ascii, indent):
    """A JSON array, and the lines on which its rows open."""
    texts = [json.dumps(row, ensure_ascii=ensure_ascii, indent=indent) for row in rows]
    text, marks = "[\n", []
    for row_text in texts:
        marks.append(len(text))
        text += row_text + ",\n\n"
    return text[:-3] + "]", lines_before(text, marks)


def examples_of(path, content):
    path.write_bytes(content)
    return read_examples(SourceSection(path=str(path)))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".json.gz"])
@given(conversations, st.booleans(), st.sampled_from([None, 0, 2]), st.booleans())
@in_one_folder
def test_conversations_written_as_json_come_back(suffix, tmp_path, rows, ensure_ascii, indent, has_bom):
    rows = [{"messages": messages, "id": number} for number, messages in enumerate(rows)]
    if suffix.startswith(".jsonl"):
        text, lines = as_lines(rows, ensure_ascii=ensure_ascii)
    else:
        text, lines = as_array(rows, ensure_ascii=ensure_ascii, indent=indent)
    content = text.encode("utf-8-sig" if has_bom else "utf-8")
    path = tmp_path / f"a{suffix}"
    examples = examples_of(path, gzip.compress(content, 1) if suffix.endswith(".gz") else content)
    assert [example.messages for example in examples] == [row["messages"] for row in rows]
    assert [str(example.place) for example in examples] == [f"{path}:{line}" for line in lines]


@given(conversations)
@in_one_folder
def test_conversations_written_as_parquet_come_back(tmp_path, rows):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages} for messages in rows]), file)
    path = tmp_path / "a.parquet"
    examples = examples_of(path, file.getvalue())
    assert [example.messages for example in examples] == rows
    assert [str(example.place) for example in examples] == [f"{path}#row {at + 1}" for at in range(len(rows))]


@given(pairs, st.sampled_from(["\n", "\r\n"]), st.booleans())
@in_one_folder
def test_pairs_written_as_csv_come_back(tmp_path, rows, line_end, has_bom):
    lines = []
    file = io.StringIO(newline="")
    # The writer of Python 3.11 leaves a lone carriage return unquoted, so everything is quoted.
    writer = csv.writer(file, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerow(["prompt", "completion"])
    for row in rows:
        lines.append(len(re.findall("\r\n|\r|\n", file.getvalue())) + 1)
        writer.writerow(row)
    path = tmp_path / "a.csv"
    examples = examples_of(path, file.getvalue().encode("utf-8-sig" if has_bom else "utf-8"))
    assert [(example.prompt, example.completion) for example in examples] == rows
    assert [str(example.place) for example in examples] == [f"{path}:{line}" for line in lines]


ROWS = [
    {"messages": [{"role": "user", "content": f"Question {n} “é”?"}, {"role": "assistant", "content": f"Answer {n}\n"}]}
    for n in range(4)
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
VALID = {
    "lines.jsonl": LINES,
    "array.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    "table.csv": 'prompt,completion\nQuestion é?,Answer\n"two\nlines","say ""hi"""\n'.encode(),
    "packed.jsonl.gz": gzip.compress(LINES),
}


@pytest.mark.parametrize("name", VALID)
@given(st.data())
@in_one_folder
def test_a_file_with_wrong_bytes_is_read_or_refused_at_one_of_its_places(name, tmp_path, data):
    content = bytearray(VALID[name])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = start + data.draw(st.sampled_from([0, 1, 2, 30]))
        content[start:end] = data.draw(st.binary(max_size=3) | st.sampled_from([b"\n", b'"', b"\\", b"{", b"]", b"\r"]))
    path = tmp_path / name
    path.write_bytes(content)
    examples, problems = read_whole(path)
    assert examples or problems


def test_the_valid_files_are_valid(tmp_path):
    for name, content in VALID.items():
        (tmp_path / name).write_bytes(content)
        examples, problems = read_whole(tmp_path / name)
        assert not problems
        assert all(isinstance(example, Conversation | PlainText) for example in examples)
