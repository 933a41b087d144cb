"""Commands whose base or data would have to come from a Hub that does not answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import datasets
import huggingface_hub
import pytest

from qlora_cli import hub
from qlora_cli.model import at_hand
from tests.hub_stand_ins import black_hole, closed_port


@pytest.fixture
def unreachable(monkeypatch):
    """The Hub's address as one that is closed, in this process as if nothing had been asked yet."""
    address = closed_port()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(hub, "_set_here", set())
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    hub._question.cache_clear()
    at_hand._say_once.cache_clear()
    yield address
    hub._question.cache_clear()


@pytest.fixture
def on_hub(recipe_file):
    """The small recipe with a base that only the Hub has."""
    values = json.loads(recipe_file.read_text())
    values["model"]["base_model"] = "some-org/some-base"
    recipe_file.write_text(json.dumps(values))
    return recipe_file


@pytest.fixture
def foreign_adapter(call, recipe_file, tmp_path):
    """An adapter made elsewhere, whose base only the Hub has."""
    assert call("train", recipe_file).code == 0
    folder = tmp_path / "adapter"
    shutil.copytree(tmp_path / "runs/small/adapter", folder)
    (folder / "qlora_adapter.json").unlink()  # what ours says of its base
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "some-org/some-base"}))
    return folder


def refused(ran, address, name="some-org/some-base"):
    """One error line that says what was tried, and one hint."""
    assert (ran.code, ran.out) == (2, "")
    error, hint = [line for line in ran.err.splitlines() if not line.startswith("planning ")]
    assert error.startswith("error: ")
    assert name in error
    assert f"{address} cannot be reached" in error
    assert hint.startswith("hint: ")


@pytest.mark.parametrize("command", [("train",), ("plan",), ("data", "check"), ("data", "show")])
def test_a_base_that_cannot_be_fetched_is_one_line_that_says_what_was_tried(call, on_hub, unreachable, command):
    refused(call(*command, on_hub), unreachable)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("data", "check"), ("data", "show"), ("train",)])
def test_data_that_cannot_be_fetched_is_one_line_too(call, recipe_file, unreachable, command):
    ran = call(*command, recipe_file, "--set", "data.train=some-org/some-rows")
    error = next(line for line in ran.err.splitlines() if line.startswith("error: "))
    assert ran.code == 2
    assert error.startswith("error: some-org/some-rows: ")
    assert f"{unreachable} cannot be reached" in error


@pytest.mark.slow
def test_commands_on_an_adapter_say_it_of_its_base(call, foreign_adapter, chat_data, unreachable):
    for command in (
        ("eval", foreign_adapter, "--data", chat_data),
        ("merge", foreign_adapter, "--out", "merged"),
        ("generate", foreign_adapter, "--prompt", "Hi"),
        ("chat", foreign_adapter),
    ):
        ran = call(*command)
        assert ran.code in (2, 3), command
        assert f"{unreachable} cannot be reached" in ran.err, command


def test_init_without_a_card_asks_nobody(call, unreachable):
    assert call("init", "--base", "some-org/some-base").code == 0
    hub._question.cache_clear()


def test_init_for_a_card_says_it_where_the_name_has_no_size(call, unreachable):
    refused(call("init", "--base", "some-org/some-base", "--gpu", "4090"), unreachable)


@pytest.mark.slow
def test_a_base_with_its_size_in_its_name_is_planned_as_a_llama_of_that_size_and_it_is_said(call, on_hub, unreachable):
    ran = call("plan", on_hub, "--set", "model.base_model=some-org/some-base-0.5b", "--gpu", "4090")
    assert ran.code == 0
    assert "the config.json of some-org/some-base-0.5b is not on this machine and cannot be fetched" in ran.out


@pytest.mark.slow
def test_the_hint_of_plan_leads_to_a_plan(call, on_hub, unreachable):
    ran = call("plan", on_hub)
    [command] = re.findall(r"`qlora (plan --params [^`]*)`", ran.err)
    ran = call(*command.split(), "--gpu", "4090", "--json", "--set", "data.max_length=64")
    assert ran.code == 0
    assert ran.json["parameters"]["base"] == pytest.approx(8e9, rel=0.02)


def test_what_the_user_said_himself_is_not_called_a_fault_of_the_network(call, on_hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = call("plan", on_hub)
    assert "HF_HUB_OFFLINE is set" in ran.err
    assert "`unset HF_HUB_OFFLINE`" in ran.err


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(call, on_hub, unreachable):
    ran = call("plan", on_hub, "--set", "model.base_model=/nowhere/base")
    assert ran.code == 2
    assert "no such folder" in ran.err


def test_a_base_in_the_hubs_cache_is_taken_and_it_is_said(
    call, recipe_file, tiny_base, unreachable, tmp_path, monkeypatch
):
    cache = tmp_path / "hub-cache"
    entry = cache / "models--some-org--some-base"
    shutil.copytree(tiny_base, entry / "snapshots/0123456789abcdef0123456789abcdef01234567")
    (entry / "refs").mkdir()
    (entry / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    for module in (huggingface_hub.constants, huggingface_hub.file_download.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(cache))
    ran = call("data", "check", recipe_file, "--set", "model.base_model=some-org/some-base")
    assert ran.code == 0
    assert "the files in the Hub's cache are taken" in ran.err


TIMED = """
import sys, time
started = time.monotonic()
import qlora_cli.plan.report, qlora_cli.model.base
imported = time.monotonic()
from qlora_cli.cli import app
sys.argv = ["qlora", "plan", "r.yaml"]
try:
    app.main()
finally:
    print(imported - started, time.monotonic() - imported)
"""
"""The command and how long its libraries took, and it without them."""


@pytest.mark.slow
def test_a_command_of_its_own_ends_within_seconds_of_its_imports(tmp_path):
    (tmp_path / "r.yaml").write_text("model: {base_model: some-org/some-base}\ndata: {train: rows.jsonl}\n")
    quiet = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    with black_hole() as address:
        ran = subprocess.run(
            [sys.executable, "-c", TIMED],
            cwd=tmp_path,
            env={**quiet, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )
    imports, seconds = map(float, ran.stdout.split())
    assert ran.returncode == 2
    assert f"{address} did not answer within 4 s" in ran.stderr
    assert seconds < 0.5 * imports + hub.SECONDS + 2  # the machine may be busy
