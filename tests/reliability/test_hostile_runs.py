"""A run directory from somebody else: links in it are not followed, bombs in it do not go off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_cli.run.checkpoints import SEAL_NAME, _seal_sha256
from qlora_cli.run.files import sha256_file
from qlora_cli.run.inventory import write_list
from qlora_cli.run.own_files import run_files
from tests.reliability.harness.hostile import REFUSED, Bomb, Place, nested, state_with_a_bomb

STEPS = {"training": {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}}


@pytest.fixture(scope="module")
def trained(furnished, tmp_path_factory) -> Path:
    """A finished run of two steps, merged and measured, as it lies in `runs`."""
    import contextlib
    import os
    import sys

    from qlora_cli.cli.app import main

    root = tmp_path_factory.mktemp("trained") / "root"
    shutil.copytree(furnished, root)
    place = Place(root, None)
    place.write_recipe(**STEPS)
    words, cache = sys.argv, os.environ["QLORA_CACHE"]
    os.environ["QLORA_CACHE"] = str(place.here / "cache")
    commands = ("train recipe.yaml", "merge runs/x --dtype float32", "eval runs/x --data sums.jsonl")
    with contextlib.chdir(place.here):
        for command in commands:
            sys.argv = ["qlora", *command.split()]
            with pytest.raises(SystemExit) as left:
                main()
            assert not left.value.code, command
    sys.argv, os.environ["QLORA_CACHE"] = words, cache
    return place.run


@pytest.fixture
def run(place, trained) -> Path:
    """The run in `place`, which a test makes hostile."""
    shutil.copytree(trained, place.run)
    place.write_recipe(**STEPS)
    return place.run


def replace_by_a_link(entry: Path, target: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)
    entry.parent.mkdir(exist_ok=True)
    entry.symlink_to(target)


RESUME = ("train", "recipe.yaml", "--resume")
START_OVER = ("train", "recipe.yaml", "--overwrite")


@pytest.mark.parametrize("command", [RESUME, START_OVER], ids=["resume", "overwrite"])
@pytest.mark.parametrize(
    "name",
    [
        *("metrics.jsonl", "log.txt", ".lock", "manifest.json", "recipe.yaml"),
        *("checkpoints", "checkpoints/step-000010", "data", "adapter", "residual", "eval", "merged"),
    ],
)
def test_a_link_in_a_run_is_not_written_through(place, run, name, command):
    replace_by_a_link(run / name, place.outside)
    ended = place.qlora(*command)
    assert ended.exit_code == 2
    assert "is a link" in ended.said


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", ".lock", "manifest.json", "recipe.yaml"])
def test_a_link_to_a_file_is_not_written_through(place, run, name):
    replace_by_a_link(run / name, place.outside / "precious")
    assert place.qlora(*RESUME).exit_code == 2


@pytest.mark.parametrize("command", [RESUME, START_OVER], ids=["resume", "overwrite"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "checkpoints", "adapter"])
def test_a_link_in_a_run_that_is_brought_back_is_not_written_through(place, run, name, command):
    (run / ".earlier").mkdir()
    write_list(run / ".earlier", run_files(run))
    for entry in [entry for entry in run.iterdir() if entry.name not in (".lock", ".earlier")]:
        entry.rename(run / ".earlier" / entry.name)
    replace_by_a_link(run / ".earlier" / name, place.outside)
    ended = place.qlora(*command)
    assert ended.exit_code in (0, *REFUSED), ended.said


@pytest.mark.parametrize("name", ["step-000010", "step-000002", ".step-000001.staging-7"])
def test_a_checkpoint_that_is_a_link_to_everything_is_neither_read_nor_deleted(place, run, name):
    replace_by_a_link(run / "checkpoints" / name, Path("/"))
    assert place.qlora(*RESUME).exit_code == 2


def test_results_are_not_written_through_a_link(place, run):
    replace_by_a_link(run / "eval", place.outside)
    ended = place.qlora("eval", "runs/x", "--data", "sums.jsonl")
    assert ended.exit_code == 2, ended.said


@pytest.mark.parametrize("options", [(), ("--force",)], ids=["", "forced"])
def test_a_merge_is_not_written_through_a_link(place, run, options):
    shutil.move(run / "merged", place.outside / "merged")
    (run / "merged").symlink_to(place.outside / "merged")
    ended = place.qlora("merge", "runs/x", *options)
    assert ended.exit_code in (0, 2), ended.said


def test_an_export_does_not_hand_on_what_a_link_leads_to(place, run):
    (run / "merged" / "notes.txt").symlink_to(place.outside / "precious")
    ended = place.qlora("export", "runs/x", "--out", "runs/exported")
    assert ended.exit_code == 3, ended.said
    assert not (place.here / "runs" / "exported").exists()


def reseal(checkpoint: Path) -> None:
    """Give a changed checkpoint the manifest that belongs to it, as someone would who wants it to be taken."""
    seal = json.loads((checkpoint / SEAL_NAME).read_text())
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != SEAL_NAME)
    seal["sha256"] = {name: sha256_file(checkpoint / name) for name in names}
    (checkpoint / SEAL_NAME).write_text(json.dumps({**seal, "seal_sha256": _seal_sha256(seal)}))


def resume_at(run: Path, step: int) -> Path:
    """As if the run had stopped there."""
    shutil.rmtree(run / "adapter")
    for later in range(step + 1, 3):
        shutil.rmtree(run / "checkpoints" / f"step-{later:06d}")
    return run / "checkpoints" / f"step-{step:06d}"


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "training_args.bin", "scheduler.pt", "scaler.pt"])
def test_a_pickle_in_a_checkpoint_is_not_read(place, run, name):
    import torch

    checkpoint = resume_at(run, 1)
    torch.save({"bomb": Bomb(place.canary), **state_with_a_bomb(place.canary)}, checkpoint / name)
    reseal(checkpoint)
    ended = place.qlora(*RESUME)
    assert ended.exit_code in (0, *REFUSED), ended.said


def deep(path: Path) -> None:
    path.write_text(nested())


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


def words_for_everything(path: Path) -> None:
    value = json.loads(path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text())
    path.write_text(json.dumps(dict.fromkeys(value, "x")) + "\n")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(1000))


def endless_number(path: Path) -> None:
    path.write_text('{"step": ' + "9" * 100_000 + "}\n{}\n")


BOMBS: tuple[Callable[[Path], None], ...] = (deep, a_list, words_for_everything, zeros, endless_number)
COMMANDS = {
    "resume": RESUME,
    "runs": ("runs",),
    "eval": ("eval", "runs/x", "--data", "sums.jsonl"),
    "merge": ("merge", "runs/x", "--force"),
    "export": ("export", "runs/x", "--out", "runs/exported"),
    "generate": ("generate", "runs/x", "--prompt", "hi", "--max-new-tokens", "1"),
}


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl"])
@pytest.mark.parametrize("command", ["resume", "runs"])
def test_a_bomb_among_the_files_of_a_run_is_one_line(place, run, command, name, bomb):
    resume_at(run, 1)
    bomb(run / name)
    ended = place.qlora(*COMMANDS[command])
    assert ended.exit_code in (0, *REFUSED), ended.said


@pytest.mark.torture
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
@pytest.mark.parametrize(
    "name", ["manifest.json", "metrics.jsonl", "recipe.yaml", "adapter/adapter_config.json", "merged/qlora_merge.json"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_falls_over_a_bomb_among_the_files_of_a_run(place, run, command, name, bomb):
    if name == "recipe.yaml" and bomb is words_for_everything:
        pytest.skip("a recipe is no JSON")
    bomb(run / name)
    ended = place.qlora(*COMMANDS[command])
    assert ended.exit_code in (0, 4, *REFUSED), ended.said
