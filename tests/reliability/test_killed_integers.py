"""A base in integers, in the cache and in a run, and the merge of such a run: killed, each leaves all or nothing.

A process is killed at a change of the file system that it makes at the place that it writes, so that no moment of the
writing is left out; the command that comes next ends with the same bytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.reliability.harness.forkserver import ForkServer
from tests.reliability.harness.killed_runs import leftovers

KILLED = -signal.SIGKILL
CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.chmod", "shutil.rmtree"}
"""Audit events of what is killed at, beside the end of each."""

INTEGERS = {"method": "int", "bits": 3, "group_size": 32}


def recipe_of(base, rows, calibration):
    from qlora_cli.recipe.schema import Recipe

    return Recipe.model_validate(
        {
            "name": "killed",
            "model": {"base_model": base, "dtype": "float32"},
            "quantization": INTEGERS | {"calibration": calibration},
            "lora": {"r": 4, "use_qalora": True, "target_modules": ["q_proj", "v_proj"]},
            "data": {"train": rows, "max_length": 128},
            "training": {
                "max_steps": 1,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 1,
                "learning_rate": 0.02,
                "warmup_ratio": 0,
                "optim": "adamw_torch",
                "gradient_checkpointing": False,
            },
        }
    )


def make(base: str, rows: str, root: str) -> None:
    """The base in the cache."""
    from qlora_cli.model.integer.making import stored_base

    recipe = recipe_of(base, rows, "none")
    stored_base(recipe.model, recipe.quantization)


def train(base: str, rows: str, root: str) -> None:
    """The base in its run; as the user goes on, with `--resume` or from the start."""
    from qlora_cli.run.directory import RunDirectory
    from qlora_cli.train.session import TrainOptions, train_recipe

    run = RunDirectory(Path(root) / "run")
    train_recipe(recipe_of(base, rows, "rows"), run, TrainOptions(resume=run.is_started))


def merge(base: str, rows: str, root: str) -> None:
    from qlora_cli.deploy.merge import MergeOptions, merge_run

    merge_run(Path(root) / "run", None, MergeOptions())


COMMANDS = {"make": (make, "cache/bases"), "train": (train, "run/integers"), "merge": (merge, "run/merged")}
"""What is called, and the folder that it makes or makes folders in."""


def call(command: str, root: str, kill_at: int, count: str, **arguments: str) -> int:
    """In a child of the fork server: a command that is killed at its n-th change at its place.

    Args:
        kill_at: n; 0 for never.
        count: file that takes the number of changes.
    """
    os.environ["QLORA_CACHE"] = str(Path(root) / "cache")
    function, place = COMMANDS[command]
    parts = ("bases",) if command == "make" else (Path(place).name, f".{Path(place).name}.")
    num_changes = 0

    def watch(event: str, values: tuple[object, ...]) -> None:
        nonlocal num_changes
        if event in CHANGES and any(_is_at(value, parts) for value in values):
            num_changes += 1
            if num_changes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    function(root=root, **arguments)
    Path(count).write_text(str(num_changes))
    return 0


def _is_at(value: object, parts: tuple[str, ...]) -> bool:
    return isinstance(value, str) and any(f"/{part}" in value for part in parts)


def contents(place: Path) -> dict[str, bytes]:
    """Files of what is whole there; a folder that is being written has a dot before its name."""
    found = {path.relative_to(place): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    return {str(path): data for path, data in found.items() if len(path.parts) == 1 or path.parts[0][0] != "."}


@pytest.fixture(scope="module")
def server():
    with ForkServer("transformers.models.llama", "qlora_cli.model.integer.calibrated") as started:
        yield started


@pytest.fixture(scope="module")
def run_command(server, tiny_base, chat_data, tmp_path_factory):
    """Runs a command below a folder; its exit code and what it said."""
    log, both = tmp_path_factory.mktemp("log") / "log", {"base": str(tiny_base), "rows": str(chat_data)}

    def run(command: str, root: Path, kill_at: int = 0) -> tuple[int, str]:
        log.write_text("")
        arguments = {"command": command, "root": str(root), "kill_at": kill_at, "count": str(root / "count")}
        return server.run(f"{__name__}:call", both | arguments, log=log), log.read_text()[-2000:]

    return run


@pytest.fixture(scope="module")
def trained(run_command, tmp_path_factory):
    """A folder with a run on its own base in integers, which nothing disturbed."""
    root = tmp_path_factory.mktemp("trained")
    assert run_command("train", root)[0] == 0
    return root


CASES = [("make", 3), ("train", 2), ("merge", 3)]
ALL = [pytest.param(command, 10_000, marks=pytest.mark.torture) for command in COMMANDS]


@pytest.mark.parametrize(("command", "most"), [*CASES, *ALL])
def test_a_killed_command_leaves_nothing_or_all_and_the_next_one_ends_with_the_same_bytes(
    command, most, run_command, trained, tmp_path
):
    place, straight, before = COMMANDS[command][1], tmp_path / "straight", tmp_path / "before"
    if command == "train":
        before.mkdir()
        shutil.copytree(trained, straight)
    else:
        shutil.copytree(trained, before)
        shutil.copytree(before, straight)
        code, said = run_command(command, straight)
        assert code == 0, said
    num_changes, whole = int((straight / "count").read_text()), contents(straight / place)
    moments = sorted({1 + number * num_changes // most for number in range(most)})
    assert num_changes > 10
    for moment in moments:
        root = shutil.copytree(before, tmp_path / "killed")
        assert run_command(command, root, moment)[0] == KILLED
        assert contents(root / place) in ({}, whole), moment
        code, said = run_command(command, root)
        assert code == 0, f"{moment}: {said}"
        assert contents(root / place) == whole, moment
        assert leftovers(root) == [], moment
        shutil.rmtree(root)
