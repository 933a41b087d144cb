"""Files and folders are replaced whole."""

from __future__ import annotations

import os
import signal
import time

import pytest

from qlora_cli.run import folders
from qlora_cli.run.files import uninterrupted, write_json, write_text
from qlora_cli.run.folders import replaced_folder
from qlora_cli.run.inventory import INVENTORY_NAME
from tests.run.leftovers import half_written_folder


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "manifest.json"
    write_json(path, {"status": "started"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert "started" in path.read_text()
    assert [item.name for item in tmp_path.iterdir()] == ["manifest.json"]


def test_text_is_replaced(tmp_path):
    write_text(tmp_path / "recipe.yaml", "old")
    write_text(tmp_path / "recipe.yaml", "new")
    assert (tmp_path / "recipe.yaml").read_text() == "new"


def test_a_folder_is_replaced_only_when_it_is_whole(tmp_path):
    out = tmp_path / "adapter"
    with replaced_folder(out) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), replaced_folder(out) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (out / "a").read_text() == "old"
    with replaced_folder(out) as folder:
        (folder / "b").write_text("new")
    assert sorted(item.name for item in out.iterdir()) == [INVENTORY_NAME, "b"]
    assert [item.name for item in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_folder_is_replaced_with_and_without_an_exchange_of_names(tmp_path, monkeypatch, has_exchange):
    if not has_exchange:  # as on a file system that does not offer it
        monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    out = tmp_path / "merged"
    for text in ("old", "new"):
        with replaced_folder(out) as folder:
            (folder / "a").write_text(text)
    assert (out / "a").read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["merged"]


@pytest.mark.slow
def test_what_killed_processes_left_goes_and_what_others_are_writing_stays(tmp_path):
    out, other = tmp_path / "merged", tmp_path / "merged-too"
    child = os.fork()
    if child == 0:  # another process that writes to the same place
        with replaced_folder(out) as stage:
            (tmp_path / "is there").write_text(stage.name)
            time.sleep(60)
    while not (tmp_path / "is there").exists() or not (tmp_path / "is there").read_text():
        time.sleep(0.01)
    killed = half_written_folder(out)
    with replaced_folder(other):
        pass
    assert killed.exists()
    with replaced_folder(out):
        pass
    theirs = tmp_path / (tmp_path / "is there").read_text()
    assert (killed.exists(), theirs.exists()) == (False, True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with replaced_folder(out):
        pass
    assert not theirs.exists()


def test_the_old_folder_is_put_back_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    out = tmp_path / "merged"
    with replaced_folder(out) as folder:
        (folder / "a").write_text("old")
    rename, calls = os.rename, []

    def interrupted_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(*arguments)

    monkeypatch.setattr(os, "rename", interrupted_at_the_second)
    with pytest.raises(KeyboardInterrupt), replaced_folder(out) as folder:
        (folder / "a").write_text("new")
    assert (out / "a").read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["merged"]


def test_a_link_is_not_followed_and_not_lost(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    (tmp_path / "adapter").symlink_to(outside)
    with replaced_folder(tmp_path / "adapter") as folder:
        (folder / "a").write_text("new")
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (tmp_path / "adapter" / "a").read_text() == "new"
    assert (tmp_path / "adapter.kept-1").readlink() == outside


def test_an_interrupted_call_is_made_again():
    answers = iter([InterruptedError, InterruptedError, None])

    def call(value: int) -> int:
        fault = next(answers)
        if fault:
            raise fault
        return value

    assert uninterrupted(call, 7) == 7


def test_secrets_are_taken_out_of_what_is_written_but_for_content(tmp_path):
    token = "hf_" + "a1" * 17
    write_json(tmp_path / "manifest.json", {"base_model": token})
    write_text(tmp_path / "answers.jsonl", token, is_content=True)
    assert (tmp_path / "manifest.json").read_text() == '{\n  "base_model": "(secret Hugging Face token)"\n}\n'
    assert (tmp_path / "answers.jsonl").read_text() == token


def test_secrets_are_taken_out_of_what_libraries_put_into_a_folder_and_of_nothing_else(tmp_path):
    token = "hf_" + "a1" * 17
    names = ("tokenizer_config.json", "README.md", "trainer_state.json", "tokenizer.json", "chat_template.jinja")
    with replaced_folder(tmp_path / "adapter") as folder:
        for name in names:
            (folder / name).write_bytes(token.encode() + b"\xff" * (name == "README.md"))
    held = [name for name in names if token in (tmp_path / "adapter" / name).read_text(errors="replace")]
    assert held == ["tokenizer.json", "chat_template.jinja"]
