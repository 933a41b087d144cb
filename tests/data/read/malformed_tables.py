"""Parquet and Arrow files and folders that are read or refused, in the form of `malformed_lines`."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import struct
from decimal import Decimal

import pyarrow
import pyarrow.parquet

from tests.data.read.malformed_lines import GOOD
from tests.data.read.malformed_messages import HELLO, HI


def parquet(rows, schema=None):
    """Bytes of a Parquet file of rows, or of a table."""
    table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows, schema=schema)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def arrow(rows, schema=None, writer=pyarrow.ipc.new_stream):
    """Bytes of an Arrow file as `datasets` writes it."""
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    file = io.BytesIO()
    with writer(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


TEXTS = [{"text": "a"}, {"text": "b"}]
TEXT_SCHEMA = pyarrow.schema([("text", pyarrow.string())])
LONG = parquet([{"text": f"row {number} " * 20} for number in range(500)])
DATED = {"text": "a", "at": datetime.datetime(2024, 1, 1), "price": Decimal("1.5"), "raw": b"\xff"}
CALLING = {**HELLO, "tool_calls": None}
NOT_UTF_8 = pyarrow.array([b"ok", b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
DICTIONARY = pyarrow.array(["a", "b", "a"]).dictionary_encode()
TWO_TEXTS = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
BAD_METADATA = pyarrow.table({"text": ["a"]}).replace_schema_metadata({"huggingface": "{"})
OFFSETS = struct.pack("<iii", 0, 6, 12)

PARQUET_FILES = [
    ("whole.parquet", parquet(TEXTS), 2),
    ("one_row.parquet", parquet(TEXTS[:1]), 1),
    ("no_rows.parquet", parquet([], TEXT_SCHEMA), ": the source holds no rows"),
    ("no_columns.parquet", parquet([{}, {}]), ": the source holds no rows"),
    ("empty.parquet", b"", ": not a Parquet file: ..."),
    ("text.parquet", b"text", ": not a Parquet file: ..."),
    ("lines.parquet", GOOD * 9, ": not a Parquet file: ..."),
    ("magic.parquet", b"PAR1", ": not a Parquet file: ..."),
    ("two_magics.parquet", b"PAR1PAR1", ": not a Parquet file: ..."),
    ("cut.parquet", LONG[:-1], ": not a Parquet file: ..."),
    ("cut_in_half.parquet", LONG[: len(LONG) // 2], ": not a Parquet file: ..."),
    ("long_footer.parquet", LONG[:-8] + b"\xff\xff\xff\x7fPAR1", ": not a Parquet file: ..."),
    ("broken_footer.parquet", LONG[:-40] + b"\xff" * 32 + LONG[-8:], ": not a Parquet file: ..."),
    ("head_cut.parquet", LONG[100:], "#row 1: cannot be read from here on: ..."),
    ("broken_start.parquet", LONG[:4] + b"\xff" * 30 + LONG[34:], "#row 1: cannot be read from here on: ..."),
    ("broken_page.parquet", LONG[:60] + bytes(200) + LONG[260:], "#row 1: cannot be read from here on: ..."),
    ("not_utf_8.parquet", parquet(pyarrow.table({"text": NOT_UTF_8})), "#row 1: cannot be read from here on: ..."),
    ("bad_metadata.parquet", parquet(BAD_METADATA), "#row 1: cannot be read from here on: ..."),
    (
        "column_twice.parquet",
        parquet(TWO_TEXTS),
        "#row 1: cannot be read from here on: a column occurs twice: text, text",
    ),
    ("null.parquet", parquet([{"text": "a"}, {"text": None}]), "#row 2: text must be a string, found null"),
    ("all_null.parquet", parquet([{"text": None}]), "#row 1: text must be a string, found null"),
    ("number.parquet", parquet([{"text": 1}]), "#row 1: text must be a string, found a number"),
    ("list.parquet", parquet([{"text": ["a"]}]), "#row 1: text must be a string, found a list"),
    ("bytes.parquet", parquet([{"text": b"a"}]), "#row 1: text must be a string, found bytes"),
    ("missing_column.parquet", parquet([{"body": "a"}]), "#row 1: no format fits the columns: body"),
    ("other_types.parquet", parquet([DATED]), 1),
    ("dictionary.parquet", parquet(pyarrow.table({"text": DICTIONARY})), 3),
    ("large_string.parquet", parquet(TEXTS, pyarrow.schema([("text", pyarrow.large_string())])), 2),
    ("messages.parquet", parquet([{"messages": [HI, HELLO]}, {"messages": [HI, CALLING]}]), 2),
    (
        "messages_as_text.parquet",
        parquet([{"messages": json.dumps([HI, HELLO])}]),
        "#row 1: messages must be a list of messages, found a string",
    ),
    (
        "null_messages.parquet",
        parquet([{"messages": [HI, HELLO]}, {"messages": None}]),
        "#row 2: messages must be a list of messages, found null",
    ),
    (
        "null_content.parquet",
        parquet([{"messages": [HI, HELLO]}, {"messages": [{**HI, "content": None}, HELLO]}]),
        "#row 2: message 1 of messages has no `content`",
    ),
]

ARROW_FILES = [
    ("whole.arrow", arrow(TEXTS), 2),
    ("no_rows.arrow", arrow([], TEXT_SCHEMA), ": the source holds no rows"),
    ("null.arrow", arrow([{"text": "a"}, {"text": None}]), "#row 2: text must be a string, found null"),
    ("empty.arrow", b"", ": not an Arrow file of `datasets`: ..."),
    ("text.arrow", b"text", ": not an Arrow file of `datasets`: ..."),
    ("cut.arrow", arrow(TEXTS)[:-60], ": not an Arrow file of `datasets`: ..."),
    ("cut_schema.arrow", arrow(TEXTS)[:50], ": not an Arrow file of `datasets`: ..."),
    ("file_format.arrow", arrow(TEXTS, writer=pyarrow.ipc.new_file), ": not an Arrow file of `datasets`: ..."),
    (
        "broken_offsets.arrow",
        arrow([{"text": "abcdef"}, {"text": "ghijkl"}]).replace(OFFSETS, struct.pack("<iii", 0, 1 << 30, 12)),
        "#row 1: cannot be read from here on: ...",
    ),
]

FOLDERS = [
    ("nothing", {}, ": the folder holds no data file"),
    ("only_about", {"README.md": b"x", ".gitattributes": b""}, ": the folder holds no data file"),
    ("unknown_file", {"a.jsonl": GOOD, "b.xlsx": b"PK"}, "/b.xlsx: unknown kind of data file '.xlsx'"),
    ("text_file", {"a.jsonl": GOOD, "notes.txt": b"x"}, "/notes.txt: unknown kind of data file '.txt'"),
    (
        "folder_inside",
        {"a.jsonl": GOOD, "more/b.jsonl": GOOD},
        ": the folder holds the folder 'more', which is not looked into",
    ),
    (
        "several_splits",
        {"test.jsonl": GOOD, "train.jsonl": GOOD},
        ": the files are of several splits: test, train",
    ),
    (
        "splits_of_parts",
        {"train-0.parquet": parquet(TEXTS), "validation-0.parquet": parquet(TEXTS)},
        ": the files are of several splits: train, validation",
    ),
    ("parts", {"train-00000.jsonl": GOOD, "train-00001.jsonl": GOOD}, 2),
    (
        "kinds",
        {"a.csv": b"text\na\n", "b.jsonl.gz": gzip.compress(GOOD), "c.parquet": parquet(TEXTS), "LICENSE": b"x"},
        4,
    ),
    ("empty_file", {"a.jsonl": GOOD, "b.jsonl": b""}, "/b.jsonl:1: the file is empty"),
    ("broken_line", {"a.jsonl": GOOD, "b.jsonl": GOOD + b"}\n"}, "/b.jsonl:2: broken JSON: Expecting value (column 1)"),
    (
        "other_columns",
        {"a.jsonl": GOOD, "b.jsonl": b'{"body": "a"}\n'},
        "/b.jsonl:1: no column 'text' for format text; the columns are: body",
    ),
    ("gzipped_parquet", {"a.parquet.gz": b""}, "/a.parquet.gz: a gzipped .parquet file is not read"),
    ("broken_state", {"state.json": b"{"}, ": the saved dataset cannot be read: ..."),
    ("state_of_nothing", {"state.json": b"{}"}, ": the saved dataset cannot be read: ..."),
    ("broken_splits", {"dataset_dict.json": b"[]"}, ": the saved dataset cannot be read: ..."),
    ("missing_split", {"dataset_dict.json": b'{"splits": ["train"]}'}, ": the saved dataset cannot be read: ..."),
]
