"""Whatever happens to the newest checkpoint's files is seen, and the older intact one takes its place."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_cli.run.checkpoints import SEAL_NAME, list_checkpoints, newest_whole
from qlora_cli.run.directory import RunDirectory
from tests.reliability.conftest import num_cases
from tests.reliability.harness import saves

ROUNDS = 10
"""Times that each kind of damage is done, each time to other files and bytes."""


def files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.iterdir() if path.is_file())


def some_file(checkpoint: Path, chance: random.Random) -> Path:
    return chance.choice(files(checkpoint))


def flip_a_bit(checkpoint: Path, chance: random.Random) -> None:
    path = some_file(checkpoint, chance)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def truncate(checkpoint: Path, chance: random.Random) -> None:
    path = some_file(checkpoint, chance)
    os.truncate(path, chance.randrange(path.stat().st_size))


def append(checkpoint: Path, chance: random.Random) -> None:
    path = chance.choice([path for path in files(checkpoint) if path.name != SEAL_NAME])
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 4096)))


def lose_a_block(checkpoint: Path, chance: random.Random) -> None:
    """Zeros in place of data, as after a power failure on some file systems."""
    path = max(files(checkpoint), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content) // 2)
    content[start : start + 512] = bytes(512)
    path.write_bytes(content)


def lose_a_file(checkpoint: Path, chance: random.Random) -> None:
    some_file(checkpoint, chance).unlink()


def lose_all_files(checkpoint: Path, chance: random.Random) -> None:
    for path in files(checkpoint):
        path.unlink()


def add_a_file(checkpoint: Path, chance: random.Random) -> None:
    (checkpoint / chance.choice(["intruder.bin", ".hidden", "sub.json", "adapter_model.bin"])).write_bytes(b"x")


def add_a_folder_with_a_file(checkpoint: Path, chance: random.Random) -> None:
    (checkpoint / "sub").mkdir()
    (checkpoint / "sub" / chance.choice([SEAL_NAME, "optimizer.json"])).write_bytes(b"{}")


def rename_a_file(checkpoint: Path, chance: random.Random) -> None:
    path = some_file(checkpoint, chance)
    path.rename(path.with_name(path.name.upper()))


def swap_two_files(checkpoint: Path, chance: random.Random) -> None:
    one, other = chance.sample([path for path in files(checkpoint) if path.name != SEAL_NAME], 2)
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


def older(checkpoint: Path) -> Path:
    return list_checkpoints(checkpoint.parent)[0].path


def take_the_older_ones_file(checkpoint: Path, chance: random.Random) -> None:
    shutil.copy(older(checkpoint) / "scheduler.json", checkpoint)


def take_the_older_ones_seal(checkpoint: Path, chance: random.Random) -> None:
    shutil.copy(older(checkpoint) / SEAL_NAME, checkpoint)


def take_the_older_ones_place(checkpoint: Path, chance: random.Random) -> None:
    shutil.rmtree(checkpoint)
    shutil.copytree(older(checkpoint), checkpoint)


def put_a_folder_in_place_of_a_file(checkpoint: Path, chance: random.Random) -> None:
    path = some_file(checkpoint, chance)
    path.unlink()
    path.mkdir()


def put_a_link_in_place_of_a_file(checkpoint: Path, chance: random.Random) -> None:
    path = some_file(checkpoint, chance)
    moved = path.rename(checkpoint.parent.parent / path.name)
    path.symlink_to(moved)


def put_a_pipe_in_place_of_a_file(checkpoint: Path, chance: random.Random) -> None:
    path = some_file(checkpoint, chance)
    path.unlink()
    os.mkfifo(path)


def edit_the_seal(checkpoint: Path, chance: random.Random) -> None:
    seal = json.loads((checkpoint / SEAL_NAME).read_text())
    key = chance.choice(sorted(seal))
    seal[key] = chance.choice([None, 4, "x", [], {}])
    if chance.random() < 0.3:
        del seal[key]
    (checkpoint / SEAL_NAME).write_text(json.dumps(seal))


def fill_the_seal_with_nonsense(checkpoint: Path, chance: random.Random) -> None:
    nonsense = ["", "null", "[]", "{", "[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "\0" * 100, '{"sha256": {}}']
    (checkpoint / SEAL_NAME).write_text(chance.choice(nonsense))


def make_the_seal_unreadable_text(checkpoint: Path, chance: random.Random) -> None:
    (checkpoint / SEAL_NAME).write_bytes(chance.randbytes(300))


def belong_to_another_run(checkpoint: Path, chance: random.Random) -> None:
    """An intact checkpoint of the same step, with other data, another base, tokenizer or template."""
    facts = saves.FACTS | {chance.choice(sorted(saves.FACTS)): "0" * 64}
    saves.save_step(RunDirectory(checkpoint.parent.parent), 6, facts)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    flip_a_bit,
    truncate,
    append,
    lose_a_block,
    lose_a_file,
    lose_all_files,
    add_a_file,
    add_a_folder_with_a_file,
    rename_a_file,
    swap_two_files,
    take_the_older_ones_file,
    take_the_older_ones_seal,
    take_the_older_ones_place,
    put_a_folder_in_place_of_a_file,
    put_a_link_in_place_of_a_file,
    put_a_pipe_in_place_of_a_file,
    edit_the_seal,
    fill_the_seal_with_nonsense,
    make_the_seal_unreadable_text,
    belong_to_another_run,
)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = RunDirectory(tmp_path_factory.mktemp("whole") / "run")
    for step in (4, 6):
        saves.save_step(run, step)
    return run


def outcome(whole: RunDirectory, folder: Path, damage: Callable[[Path, random.Random], None], seed: int) -> str:
    """Do the damage to a copy of the run; what is then not as it should be, or nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.path, folder)
    run = RunDirectory(folder)
    damage(run.checkpoints_path / "step-000006", random.Random(seed))
    checkpoint, skipped = newest_whole(run.checkpoints_path, saves.FACTS)
    if checkpoint is None or checkpoint.step != 4:
        return f"{damage.__name__} {seed}: resumes at {checkpoint}"
    if [(item.step, bool(reason)) for item, reason in skipped] != [(6, True)]:
        return f"{damage.__name__} {seed}: skipped {skipped}"
    saves.save_step(run, 6)
    again, skipped = newest_whole(run.checkpoints_path, saves.FACTS)
    is_mended = again is not None and again.step == 6 and not skipped
    return "" if is_mended else f"{damage.__name__} {seed}: saved again, {again}, {skipped}"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over_and_the_next_save_replaces_it(two_checkpoints, tmp_path, damage):
    found = [outcome(two_checkpoints, tmp_path / "run", damage, seed) for seed in range(ROUNDS)]
    assert [problem for problem in found if problem] == []


@pytest.mark.torture
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_many_damages(two_checkpoints, tmp_path, damage):
    rounds = num_cases("DAMAGES", 5000) // len(DAMAGES)
    found = [outcome(two_checkpoints, tmp_path / "run", damage, seed) for seed in range(1000, 1000 + rounds)]
    assert [problem for problem in found if problem] == []


def test_two_checkpoints_that_are_whole_are_whole(two_checkpoints):
    checkpoint, skipped = newest_whole(two_checkpoints.checkpoints_path, saves.FACTS)
    assert (checkpoint.step, skipped) == (6, [])


def test_a_seal_says_what_the_run_stands_on(two_checkpoints):
    seal = json.loads((two_checkpoints.checkpoints_path / "step-000006" / SEAL_NAME).read_text())
    assert {key: seal[key] for key in saves.FACTS} == saves.FACTS
    assert {"python", "qlora", "torch", "transformers", "peft", "bitsandbytes"} <= seal["versions"].keys()
