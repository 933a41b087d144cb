"""docs/python.md is true: its examples run, in order, as a reader would run them."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest

import qlora_cli

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "python.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def reader(tiny_base, chat_data, tmp_path, monkeypatch):
    """A folder with what the examples name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base, "base")
    shutil.copy(chat_data, "sums.jsonl")
    values = {
        "model": {"base_model": "base"},
        "data": {"train": "sums.jsonl", "max_length": 64, "eval_fraction": 0.1},
        "training": {"max_steps": 4, "learning_rate": 0.01},
    }
    Path("recipe.yaml").write_text(json.dumps(values), encoding="utf-8")


def test_the_examples_run(reader, capsys):
    space: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), space)
    printed = capsys.readouterr().out
    assert printed.startswith("runs/recipe ")
    assert "error: run directory 'runs/recipe' already holds a finished run\nhint: " in printed
    assert re.search(r"^loss +\d+\.\d+ +\d+\.\d+ +[+-]\d+\.\d+ ", printed, flags=re.MULTILINE)
    assert Path("my-model/config.json").is_file()
    assert {path.name for path in Path("runs").iterdir()} == {"recipe", "rate-0.001", "rate-0.01", "compare.html"}


def test_the_table_has_every_function_with_its_arguments():
    rows = re.findall(r"^\| `(\w+)\(([^)]*)\)`", PAGE, flags=re.MULTILINE)
    assert {name for name, _ in rows} == {*qlora_cli.__all__} - {"QloraError"}
    for name, arguments in rows:
        listed = [argument for argument in arguments.split(", ") if argument != "*"]
        assert listed == [*inspect.signature(getattr(qlora_cli, name)).parameters], name
