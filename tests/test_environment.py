"""Variables for the libraries below are set for as long as they are meant, and the user's stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_cli.environment import COMPILER_OFF, nothing_is_compiled

ROOT = Path(__file__).resolve().parents[1]

LOADING = """
import os, sys
from qlora_cli import compat, console
from qlora_cli.progress import loading_libraries

compat.keep_imports_quiet()
console.err.quiet = True  # our own line, which comes after two seconds
with loading_libraries():
    import qlora_cli.train.session
import torch

print("torch._inductor.compile_fx" in sys.modules, os.environ.get("TORCHDYNAMO_DISABLE"))
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item(), end=" ")
print(torch._dynamo.utils.counters["frames"]["ok"])
"""


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_the_compiler_is_off_in_the_block_unless_the_user_says_otherwise(monkeypatch, before):
    monkeypatch.delenv(COMPILER_OFF, raising=False)
    if before is not None:
        monkeypatch.setenv(COMPILER_OFF, before)
    with pytest.raises(KeyError), nothing_is_compiled():
        assert os.environ[COMPILER_OFF] == (before or "1")
        raise KeyError
    assert os.environ.get(COMPILER_OFF) == before


@pytest.mark.slow
def test_what_trains_is_imported_without_a_word_and_without_the_compiler_which_works_afterwards(monkeypatch):
    monkeypatch.delenv(COMPILER_OFF, raising=False)
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""
    assert done.stdout.split() == ["False", "None", "2.0", "1"]
