"""The frame around all commands: help, version, exit codes, tracebacks only where asked for."""

from __future__ import annotations

import os
import re
import signal
from importlib.metadata import version

import pytest

from qlora_cli.errors import QloraError
from qlora_cli.interruption import STOP_SIGNALS

COMMANDS = (
    "init", "recipes", "validate", "schema", "plan", "train", "tiny", "eval", "report", "compare", "merge", "export",
    "generate", "chat", "serve", "push", "runs", "doctor", "env", "data",
)  # fmt: skip


def test_help_lists_every_command_with_what_it_does(call):
    ran = call("--help")
    assert ran.code == 0
    listed = re.findall(r"^  (\w+) +[A-Z]", ran.out.partition("Options")[0], flags=re.MULTILINE)
    assert tuple(listed) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call, command):
    ran = call(command, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: qlora {command} ")


def test_the_version_is_that_of_the_package(call):
    ran = call("--version")
    assert (ran.code, ran.out) == (0, f"qlora {version('qlora-cli')}\n")


def test_without_a_command_the_help_is_shown(call):
    ran = call()
    assert ran.code == 2
    assert re.search("Usage: .*qlora", ran.out + ran.err)


def test_a_bad_recipe_is_a_line_and_a_hint_without_a_traceback(call, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: {base_model: b}\ndata: {train: t.jsonl}\nlora:\n  lora_alpah: 8\n")
    ran = call("train", "bad.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: bad.yaml:4: unknown key 'lora.lora_alpah'\nhint: did you mean 'lora.lora_alpha'?\n"


ANYWHERE = [
    ("--debug", "validate", "bad.yaml"),
    ("validate", "--debug", "bad.yaml"),
    ("validate", "bad.yaml", "--debug"),
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ANYWHERE, ids=" ".join)
def test_debug_shows_where_an_error_comes_from(start, tmp_path, arguments):
    (tmp_path / "bad.yaml").write_text("lora: {r: 0}\n")
    process = start(*arguments)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.startswith("Traceback")
    assert "qlora_cli/recipe/reader.py" in err
    assert "RecipeError: error: " in err


def test_every_kind_of_error_ends_with_its_exit_code(call, monkeypatch):
    for kind in QloraError.__subclasses__():
        # A command that fails in this way stands in for the many that can.
        error = kind("x", signal_number=15) if kind.__name__ == "StoppedBySignal" else kind("x")

        def fail(error=error):
            raise error

        monkeypatch.setattr("qlora_cli.recipe.json_schema.recipe_json_schema", fail)
        ran = call("schema")
        assert (ran.code, ran.err) == (error.exit_code, "error: x\n")


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_any_command_is_one_line_and_exit_code_128_plus_its_number(call, monkeypatch, number):
    handlers = [signal.getsignal(one) for one in STOP_SIGNALS]
    monkeypatch.setattr("qlora_cli.recipe.json_schema.recipe_json_schema", lambda: os.kill(os.getpid(), number))
    ran = call("schema")
    assert (ran.code, ran.out) == (128 + number, "")
    assert ran.err == f"{number.name}: stopped before it was done; nothing is left half written\n"
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == handlers


def test_a_fault_of_ours_is_not_dressed_up_as_the_user_s(call, monkeypatch):
    def broken():
        raise ValueError("a contract of ours is broken")

    monkeypatch.setattr("qlora_cli.recipe.json_schema.recipe_json_schema", broken)
    with pytest.raises(ValueError, match="a contract of ours"):
        call("schema")
