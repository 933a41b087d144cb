import errno
import json
import os

import pytest

from qlora_cli.errors import ArgumentError
from qlora_cli.serve import saved_chat
from qlora_cli.serve.saved_chat import save_conversation

TURNS = [{"role": "user", "content": "a\u2028é\nb"}, {"role": "assistant", "content": '</think> "x"'}]


def rows(path):
    return [json.loads(line)["messages"] for line in path.read_text("utf-8").split("\n") if line]


def test_rows_are_added_one_behind_the_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert [save_conversation(path, TURNS) for _ in range(3)] == [1, 2, 3]
    assert rows(path) == [TURNS] * 3


def test_a_file_without_a_last_line_break_gets_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": TURNS, "source": "mine"}))
    assert save_conversation(path, TURNS) == 2
    assert rows(path) == [TURNS, TURNS]


def test_an_empty_file_is_filled(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.touch()
    assert save_conversation(path, TURNS) == 1
    assert rows(path) == [TURNS]


OTHER = {
    "prose": b"Dear diary\n",
    "another format": b'{"instruction": "a", "output": "b"}\n',
    "a JSON list": b'[{"messages": []}]\n',
    "an unknown role": b'{"messages": [{"role": "oracle", "content": "x"}, {"role": "assistant", "content": "y"}]}\n',
    "a recipe": b"name: x\n",
    "no text": b"\xff\xfe\x00",
    "rows and then a broken line": json.dumps({"messages": TURNS}).encode() + b'\n{"messages": [\n',
}


@pytest.mark.parametrize("content", OTHER.values(), ids=OTHER)
def test_a_file_that_holds_something_else_stays_as_it_is(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ArgumentError):
        save_conversation(path, TURNS)
    assert path.read_bytes() == content


def test_a_link_to_nowhere_a_folder_and_a_pipe_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(ArgumentError):
            save_conversation(tmp_path / name, TURNS)
    assert not (tmp_path / "nowhere").exists()


def test_a_disk_that_fills_up_leaves_the_rows_that_were_there(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    save_conversation(path, TURNS)
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saved_chat.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_conversation(path, TURNS)
    assert path.read_bytes() == before
