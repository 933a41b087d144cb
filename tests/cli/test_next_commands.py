"""The line `next:` at the end of a command is a command line that works, pasted as it is."""

from __future__ import annotations

import io
import json
import shlex
import sys

import pytest

pytestmark = pytest.mark.slow


def next_of(ran) -> list[list[str]]:
    """The command lines that the last line says, without the name of the program."""
    last = ran.err.splitlines()[-1]
    assert last.startswith("next: qlora ")
    return [shlex.split(line)[1:] for line in last.removeprefix("next: ").split(" && ")]


def test_the_road_from_init_to_chat(call, tmp_path, tiny_base, chat_data, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/exit\n"))
    (tmp_path / "my recipes").mkdir()
    written = call("init", "--base", tiny_base, "--data", chat_data, "--out", "my recipes/first.yaml")
    validate, train = next_of(written)
    assert call(*validate).code == 0
    small = ("training.num_train_epochs=1", "training.learning_rate=0.01", "data.max_length=64", "data.packing=false")
    sets = [word for change in small for word in ("--set", change)]
    trained = call(*train, *sets, "--run-dir", tmp_path / "my runs/one")
    assert trained.code == 0
    [onward] = next_of(trained)
    assert call(*onward).code == 0
    merged = call("merge", tmp_path / "my runs/one", "--dtype", "float32")
    [chat] = next_of(merged)
    assert call(*chat).code == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("/exit\n"))
    exported = call("export", tmp_path / "my runs/one", "--out", "to hand on")
    [chat] = next_of(exported)
    assert chat == ["chat", "to hand on"]
    assert call(*chat).code == 0


def test_with_json_there_is_no_such_line(call, recipe_file):
    ran = call("train", recipe_file, "--json")
    assert json.loads(ran.out)["is_finished"]
    assert "next:" not in ran.err


def test_a_stopped_run_with_a_space_in_its_name_is_resumed_by_what_it_says(call, recipe_file, tmp_path):
    stopped = call("train", recipe_file, "--stop-after", 1, "--run-dir", "my run")
    words = shlex.split(stopped.out.splitlines()[-1].removeprefix("go on with: qlora "))
    assert call(*words).code == 0
    assert (tmp_path / "my run/adapter").is_dir()


@pytest.mark.parametrize("command", ["merge", "eval", "chat", "generate"])
def test_a_command_on_the_latest_run_names_it_once(call, recipe_file, command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/exit\n"))
    call("train", recipe_file)
    arguments = ("--prompt", "hi", "--max-new-tokens", "2") if command == "generate" else ()
    ran = call(command, *arguments)
    assert ran.code == 0
    assert ran.err.count("the latest run is runs/small\n") == 1
