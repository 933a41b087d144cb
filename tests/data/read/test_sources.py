"""Reading: every kind of source gives its rows with their places, one after the other."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import tracemalloc

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from qlora_cli.data.causes import Cause, RowError
from qlora_cli.data.example import Place, RawRow
from qlora_cli.data.read.sources import parse_row, read_raw, read_rows, source_files
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection

ROWS = [{"instruction": "Add 1 and 2.", "output": "3"}, {"instruction": "Grüße", "output": "你好 🙂"}]
GOOD = b'{"instruction": "a", "output": "b"}\n'


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


def test_lines_are_handed_on_unparsed_with_their_offset(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD)
    raws = list(read_raw(SourceSection(path=str(path))))
    assert raws == [
        RawRow(Place(str(path), 1, 1), GOOD, 3),
        RawRow(Place(str(path), 3, 2), GOOD, 3 + len(GOOD) + 1),
    ]
    assert parse_row(raws[0]) == {"instruction": "a", "output": "b"}


def test_nothing_is_read_before_the_first_row_is_asked_for(tmp_path):
    rows = read_raw(SourceSection(path=str(tmp_path / "missing.jsonl")))
    with pytest.raises(DataError, match="no such file"):
        next(rows)


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl"])
def test_a_fault_of_one_row_does_not_keep_the_next_ones_back(name, tmp_path):
    content = {
        "a.csv": b"x,y\n1,2\n1\n3,4\n",
        "a.json": b'[{"x": 1},\n3,\n{"x": 2}]',
        "a.jsonl": b'{"x": 1}\n3\n{"x": 2}\n',
    }
    (tmp_path / name).write_bytes(content[name])
    first, second, third = read_raw(SourceSection(path=str(tmp_path / name)))
    with pytest.raises(RowError) as caught:
        parse_row(second)
    assert caught.value.cause is Cause.MALFORMED
    assert caught.value.problems[0].place == str(second.place)
    assert [place for place, _ in rows_until_fault(tmp_path / name)] == [first.place, third.place]


def rows_until_fault(path):
    rows = []
    with pytest.raises(DataError):
        rows.extend(read_rows(SourceSection(path=str(path))))
    return rows


def test_raw_rows_cross_to_another_process(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x,y\n1,2\n1\n")
    raws = list(read_raw(SourceSection(path=str(tmp_path / "a.csv"))))
    assert pickle.loads(pickle.dumps(raws)) == raws  # noqa: S301 - our own


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
def test_memory_does_not_grow_with_the_rows(suffix, tmp_path):
    peaks_bytes = []
    for num_rows in (10_000, 30_000):
        path = tmp_path / f"{num_rows}{suffix}"
        write_rows(path, [{"text": f"{number} " + "word " * 30} for number in range(num_rows)])
        tracemalloc.start()
        assert sum(1 for _ in read_raw(SourceSection(path=str(path)))) == num_rows
        peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks_bytes[1] < peaks_bytes[0] + 20_000 * 80  # half the text of the rows that are more


def write_rows(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        path.write_text("text\n" + "".join(row["text"] + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def test_the_files_of_a_source_are_named(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved" / "deep")
    assert source_files(SourceSection(path=str(tmp_path / "b.jsonl"))) == [tmp_path / "b.jsonl"]
    saved = source_files(SourceSection(path=str(tmp_path / "saved" / "deep")))
    assert [path.name for path in saved] == ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"]
    shutil.rmtree(tmp_path / "saved")
    assert source_files(SourceSection(path=str(tmp_path))) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert source_files(SourceSection(path="owner/name")) == []
    with pytest.raises(DataError, match="no such file"):
        source_files(SourceSection(path=str(tmp_path / "c.jsonl")))


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


def test_streaming_is_refused_for_a_local_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"`streaming: true` is for Hub datasets.*\nhint: leave `streaming` out"):
        read(tmp_path / "a.jsonl", streaming=True)


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
    with pytest.raises(
        DataError, match="neither a file or folder here nor a dataset in the Hub's cache, and HF_HUB_OFFLINE is set"
    ):
        read("no-such-owner/no-such-dataset")
