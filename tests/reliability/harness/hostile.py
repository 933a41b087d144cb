"""Somebody else's files, some of them made to do harm, and the commands that are run on them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from qlora_cli.cli.app import main
from qlora_cli.model.adapter import save_adapter
from tests.tiny_models import byte_tokenizer, tiny_llama

REFUSED = (2, 3)
"""Exit codes of an error that says what to do about somebody else's files."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    exit_code: int
    said: str


class Place:
    """A folder with a base, an adapter, data and a recipe, to which a test adds what does harm."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.canary = root / "canary"
        """Made by whatever is executed that should not be."""

        self.here = root / "here"
        """Where commands are run; they may write into `runs` and `cache` in it."""

        self.base = self.here / "base"
        self.adapter = self.here / "made-elsewhere" / "adapter"
        self.outside = root / "outside"
        self.run = self.here / "runs" / "x"
        self._capsys = capsys

    def recipe(self, **sections: Any) -> dict[str, Any]:
        """A recipe of one step; sections and keys can be overridden."""
        values: dict[str, Any] = {
            "name": "x",
            "model": {"base_model": "base"},
            "lora": {"r": 2},
            "data": {"train": "sums.jsonl", "max_length": 64},
            "training": {
                "max_steps": 1,
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 1,
                "optim": "adamw_torch",
            },
        }
        for section, keys in sections.items():
            values[section] = {**values.get(section, {}), **keys} if isinstance(keys, dict) else keys
        return values

    def write_recipe(self, **sections: Any) -> Path:
        path = self.here / "recipe.yaml"
        path.write_text(json.dumps(self.recipe(**sections)))
        return path

    def qlora(self, *arguments: str) -> Ended:
        """Run a command as the shell does, and see that it has run nothing and written nowhere but in its places."""
        before = snapshot(self.root)
        code, words = 0, sys.argv
        self._capsys.readouterr()
        sys.argv = ["qlora", *arguments]
        try:
            with contextlib.chdir(self.here):
                main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            sys.argv = words
        printed = self._capsys.readouterr()
        assert not self.canary.exists(), f"something was executed by qlora {' '.join(arguments)}"
        assert snapshot(self.root) == before, f"qlora {' '.join(arguments)} has written outside of its places"
        return Ended(code, printed.out + printed.err)


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Every entry below `root` with its size, time and kind, without those that commands may write.

    Results of `qlora eval` are among these: they lie beside an adapter.
    """
    found = {}
    for folder, folders, names in os.walk(root):
        if Path(folder) == root / "here":
            folders[:] = [name for name in folders if name not in ("runs", "cache")]
        if "adapter_config.json" in names:
            folders[:] = [name for name in folders if name != "eval"]
        for name in [*folders, *names]:
            entry = Path(folder, name)
            status = entry.lstat()
            size = 0 if entry.is_dir() else status.st_size
            changed = 0 if entry.is_dir() else status.st_mtime_ns
            found[str(entry)] = (status.st_mode, size, changed, os.readlink(entry) if entry.is_symlink() else "")
    return found


def furnish(root: Path) -> None:
    """Base, adapter, data and a precious file outside."""
    here = root / "here"
    tokenizer = byte_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(here / "base")
    tokenizer.save_pretrained(here / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", base_model_name_or_path="base")
    save_adapter(get_peft_model(tiny_llama(len(tokenizer)), config), here / "made-elsewhere" / "adapter")
    change_json(here / "made-elsewhere" / "adapter" / "adapter_config.json", base_model_name_or_path="base")
    rows = ({"instruction": f"add {number}", "output": str(number)} for number in range(12))
    (here / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "outside").mkdir()
    (root / "outside" / "precious").write_text("keep")


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Bomb:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self._canary), "w")


def code(canary: Path) -> str:
    """A Python file that makes the canary when it is imported, and holds what a repository's code may be asked for."""
    return (
        f"open({str(canary)!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
        "class MyTokenizer(PreTrainedTokenizerFast):\n    pass\n"
        "def generate(*arguments, **options):\n    pass\n"
    )


def nested(opening: str = '{"a":', depth: int = 100_000) -> str:
    """JSON that is deeper than any reader's stack."""
    return opening * depth


@contextlib.contextmanager
def a_copy_of(furnished: Path, target: Path) -> Iterator[Path]:
    shutil.copytree(furnished, target, symlinks=True)
    yield target
    shutil.rmtree(target, ignore_errors=True)


def state_with_a_bomb(canary: Path) -> dict[str, Any]:
    return {"model.norm.weight": torch.ones(64), "bomb": Bomb(canary)}
