"""Files of a user's around and inside of what commands write, and the writing parts of the commands themselves."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from qlora_cli.data import cache
from qlora_cli.data.check import SCRATCH
from qlora_cli.errors import QloraError
from qlora_cli.model.tiny import TinyOptions, make_tiny_base
from qlora_cli.run.checkpoints import rotate_checkpoints, staged_checkpoint
from qlora_cli.run.claim import claimed
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.disk_errors import storage_faults
from qlora_cli.run.files import refuse_foreign_page, write_json, write_text
from qlora_cli.run.folders import put_in_place, replaced_folder, scratch_folder, sweep
from qlora_cli.run.inventory import listed_files, write_inventory
from qlora_cli.run.manifest import write_manifest
from qlora_cli.run.replaced_run import restore_or_delete
from qlora_cli.run.staging import staged_folder
from qlora_cli.train.checkpoint.resume import prepare_run_directory, refuse_foreign_parts

NAMES = (
    *("thesis.txt", "notes.md", "src/main.py", ".git/HEAD", "labels.csv", "config.json", ".hidden", "tokenizer.json"),
    *("model.safetensors", "results.json", "manifest.bak", "recipe.yml", "README", "weights.kept-1"),
    *("data/raw.jsonl", "checkpoints/best/x", "adapter/mine.safetensors", "eval/labels.csv", "merged/card.md"),
    *(".earlier-2/a", "deep/er/still/x", ".adapter.staging-1/thesis.txt", ".merged.retired-77/thesis.txt"),
    *(".step-000004.staging-9/thesis.txt", ".adapter.new-0123456789abcdef/thesis.txt", ".check.staging-3/thesis.txt"),
    ".manifest.json.staged-5",
)
WEIGHTS = {"weight": torch.arange(64.0)}


def write_model(folder: Path, name: str) -> None:
    """What libraries leave in a folder of weights."""
    save_file(WEIGHTS, folder / name)
    (folder / "config.json").write_text("{}")


def train(run: Path, *, overwrite: bool, steps: int, is_started: bool = True) -> None:
    """All that `qlora train` writes, without the arithmetic."""
    directory = RunDirectory(run)
    with claimed(directory), storage_faults(directory):
        if overwrite or not directory.is_started:
            prepare_run_directory(directory, overwrite=overwrite)
        else:
            refuse_foreign_parts(directory)
        with directory.log_path.open("a") as log:
            log.write("a line\n")
        directory.data_path.mkdir(exist_ok=True)
        write_json(directory.data_path / "report.json", {})
        if not is_started:
            raise QloraError("no row can be trained on")
        write_manifest(directory, {"status": "started"})
        write_text(directory.recipe_path, "name: x\n")
        restore_or_delete(directory)
        for step in range(1, steps + 1):
            with staged_checkpoint(directory.checkpoints_path, step, {}) as folder:
                save_file(WEIGHTS, folder / "adapter_model.safetensors")
            rotate_checkpoints(directory.checkpoints_path, keep=2)
        with replaced_folder(directory.adapter_path) as folder:
            write_model(folder, "adapter_model.safetensors")


def merge(out: Path, *, force: bool) -> None:
    with staged_folder(out, force=force) as folder:
        write_model(folder, "model.safetensors")


def evaluate(folder: Path) -> None:
    with replaced_folder(folder) as stage:
        write_json(stage / "answers.json", {})


def prepare_cache(key: str) -> None:
    with cache.locked(key) as entry:
        if not cache.touch(entry):
            with replaced_folder(entry) as stage:
                write_json(stage / cache.FACTS_FILE, {"report": {"num_train": 1, "sources": []}, "made_at": ""})


def check_into_cache(key: str) -> None:
    root = cache.cache_root()
    root.mkdir(parents=True, exist_ok=True)
    sweep(root, SCRATCH)
    with scratch_folder(root, SCRATCH) as folder:
        write_json(folder / cache.FACTS_FILE, {"report": {"num_train": 1, "sources": []}, "made_at": ""})
        with cache.locked(key) as entry:
            if not cache.touch(entry):
                write_inventory(folder)
                put_in_place(folder, entry, listed_files)


def write_page(path: Path) -> None:
    refuse_foreign_page(path)
    write_text(path, '<meta name="generator" content="qlora">')


KEY = "0123456789abcdef" * 2
SMALLEST = TinyOptions(steps=0, num_layers=1, hidden_size=64, num_heads=1)
COMMANDS: dict[str, Callable[[Path], None]] = {
    "train": lambda root: train(root / "run", overwrite=False, steps=3),
    "train --overwrite": lambda root: train(root / "run", overwrite=True, steps=3),
    "train --overwrite, bad data": lambda root: train(root / "run", overwrite=True, steps=1, is_started=False),
    "train --run-dir project": lambda root: train(root / "project", overwrite=True, steps=1),
    "train --run-dir .": lambda root: train(root, overwrite=True, steps=1),
    "merge": lambda root: merge(root / "run" / "merged", force=False),
    "merge --force": lambda root: merge(root / "run" / "merged", force=True),
    "export --force": lambda root: merge(root / "out", force=True),
    "export --force --out project": lambda root: merge(root / "project", force=True),
    "eval": lambda root: evaluate(root / "run" / "eval"),
    "data check": lambda root: check_into_cache(KEY),
    "train, data cached": lambda root: prepare_cache(KEY),
    "data cache --clear": lambda root: cache.clear() and None,
    "tiny": lambda root: make_tiny_base(root / "tiny", SMALLEST) and None,
    "tiny --force": lambda root: make_tiny_base(root / "tiny", SMALLEST, force=True) and None,
    "data show --html": lambda root: write_page(root / "project" / "page.html"),
}


def scatter(root: Path, chance: random.Random, num_files: int) -> None:
    """Put files and links of a user's into folders that are there, hidden ones of killed processes left out."""
    folders = [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]
    folders = [folder for folder in folders if not any(part.startswith(".") for part in folder.relative_to(root).parts)]
    for number in range(num_files):
        path = chance.choice(folders) / chance.choice(NAMES)
        blockers = [parent for parent in path.parents if os.path.lexists(parent) and not parent.is_dir()]
        if os.path.lexists(path) or blockers:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if chance.random() < 0.1:
            path.symlink_to(chance.choice(["/", "thesis.txt", "nowhere"]))
        else:
            path.write_text(f"mine {number} " * chance.randint(0, 3))
            path.chmod(chance.choice([0o600, 0o644, 0o755]))


def contents(root: Path, names: set[str] | None = None) -> dict[str, tuple[object, ...]]:
    """Path -> kind, mode and bytes of every file and link below `root`, or of those in `names`."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            relative = str(path.relative_to(root))
            if path.is_symlink():
                found[relative] = ("link", os.readlink(path))
            elif path.is_file():
                found[relative] = ("file", path.stat().st_mode, path.read_bytes())
    return found if names is None else {name: value for name, value in found.items() if name in names}


def call_in_a_child(command: str, root: Path, kill_at: int | None) -> int:
    """Run a command in a forked process that is killed at its n-th change of the file system; the wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if kill_at is not None:
            _die_at(kill_at)
        os.chdir(root)
        COMMANDS[command](root)
        code = 0
    except QloraError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def _die_at(number: int) -> None:
    names = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "open")
    changes = {*names, "shutil.rmtree"}
    left = number

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in changes:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
