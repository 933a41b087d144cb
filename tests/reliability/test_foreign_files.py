"""Nothing of a user's is ever deleted or changed that a command did not write itself."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.reliability.conftest import num_cases
from tests.reliability.harness.foreign import COMMANDS, call_in_a_child, contents, scatter, train

UNDISTURBED = (0, 2, 3, 5)
"""Exit codes of a command that nobody kills: done, or refused in a line that says why."""


QUICK = [name for name in COMMANDS if not name.startswith("tiny")]


def one_case(root: Path, chance: random.Random) -> tuple[list[str], dict[str, object], dict[str, object]]:
    """Commands on a tree, with a user's files put into it between them and kills; what was said, before and after."""
    (root / "project").mkdir(parents=True)
    scatter(root, chance, 3)
    mine: set[str] = set(contents(root))
    before = contents(root, mine)
    story = []
    for _ in range(chance.randint(2, 5)):
        command = chance.choice(QUICK)
        kill_at = chance.randint(1, 120) if chance.random() < 0.5 else None
        status = call_in_a_child(command, root, kill_at)
        code = os.waitstatus_to_exitcode(status)
        story.append(f"{command} (killed at {kill_at}): {code}")
        assert code in UNDISTURBED or (code == -9 and kill_at), story
        after = contents(root)
        if any(after.get(name) != value for name, value in before.items()):
            return story, before, after
        known = set(after)
        scatter(root, chance, chance.randint(0, 6))
        mine |= set(contents(root)) - known
        before = contents(root, mine)
    return story, before, contents(root, mine)


def run_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + num):
        root = tmp_path / str(seed) / "root"
        root.mkdir(parents=True)
        monkeypatch.setenv("QLORA_CACHE", str(root / "cache"))
        monkeypatch.setenv("HOME", str(tmp_path / str(seed)))
        story, before, after = one_case(root, random.Random(seed))
        changed = {name: (value, after.get(name)) for name, value in before.items() if after.get(name) != value}
        assert not changed, (seed, story, changed)


def test_no_foreign_byte_changes_whatever_commands_run_and_are_killed(tmp_path, monkeypatch):
    run_cases(tmp_path, monkeypatch, 80, first_seed=0)


@pytest.mark.torture
def test_no_foreign_byte_changes_in_many_cases(tmp_path, monkeypatch):
    run_cases(tmp_path, monkeypatch, num_cases("FOREIGN", 10_000), first_seed=1_000_000)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_these_cases_does_its_work_where_nothing_is_in_the_way(tmp_path, monkeypatch, command):
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("QLORA_CACHE", str(root / "cache"))
    if command in ("train --overwrite", "train --overwrite, bad data"):
        train(root / "run", overwrite=False, steps=1)
    (root / "project").mkdir()
    before = set(contents(root))
    code = os.waitstatus_to_exitcode(call_in_a_child(command, root, None))
    assert code == (2 if command in ("train --run-dir .", "train --overwrite, bad data") else 0)
    is_unchanged = command in ("train --run-dir .", "train --overwrite, bad data", "data cache --clear")
    assert (set(contents(root)) == before) is is_unchanged or command == "train --overwrite"


TWO_STEPS = {"training": {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}}
"""The first step has a learning rate of 0."""


# The stories of users who lost their work.


@pytest.fixture
def project(place) -> dict[str, tuple[object, ...]]:
    """A project in the current directory, with a recipe under the name that `init` writes."""
    place.write_recipe()
    for name in (".git/HEAD", "src/main.py", "thesis.txt"):
        (place.here / name).parent.mkdir(exist_ok=True)
        (place.here / name).write_text("years of work")
    return contents(place.here)


def test_a_project_that_is_named_as_run_directory_survives_obeying_every_hint(place, project):
    for options in ((), ("--overwrite",), ("--resume",)):
        ended = place.qlora("train", "recipe.yaml", "--run-dir", ".", *options)
        assert ended.exit_code == 2
        assert "'.' is the current directory" in ended.said
        assert contents(place.here) == project
    assert place.qlora("train", "recipe.yaml").exit_code == 0  # as the hint says: leave --run-dir out


def test_a_folder_with_labels_another_adapter_and_results_is_no_run_directory(place):
    place.write_recipe()
    folder = place.here / "runs" / "proj"
    for name in ("labels.csv", "adapter/adapter_model.safetensors", "eval/results.json", "recipe.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = contents(folder)
    for options in ((), ("--overwrite",), ("--resume",)):
        ended = place.qlora("train", "recipe.yaml", "--run-dir", "runs/proj", *options)
        assert ended.exit_code == 2
        assert "is not a run directory, and not empty: it holds adapter, eval, labels.csv, recipe.yaml" in ended.said
        assert contents(folder) == before


def test_overwriting_a_run_twice_spares_what_was_put_into_it(place):
    place.write_recipe(**TWO_STEPS)
    assert place.qlora("train", "recipe.yaml").exit_code == 0
    names = ("thesis.txt", "adapter/notes.md", "checkpoints/step-000001/notes.md", "eval/labels.csv", "data/raw.jsonl")
    for name in names:
        (place.run / name).parent.mkdir(parents=True, exist_ok=True)
        (place.run / name).write_text("mine")
    before = contents(place.run, set(names))
    for _ in range(2):
        ended = place.qlora("train", "recipe.yaml", "--overwrite")
        assert ended.exit_code == 0
        assert "not part of the run: adapter/notes.md, checkpoints/step-000001/notes.md, data/raw.jsonl" in ended.said
        assert contents(place.run, set(names)) == before
    commands = (
        ("merge", "runs/x"),
        ("merge", "runs/x", "--force"),
        ("eval", "runs/x", "--data", "sums.jsonl"),
        ("export", "runs/x", "--out", "runs/out"),
        ("export", "runs/x", "--out", "runs/out", "--force"),
        ("data", "cache", "--clear"),
    )
    for command in commands:
        assert place.qlora(*command).exit_code == 0
        assert contents(place.run, set(names)) == before


def test_results_that_were_put_into_a_run_by_hand_are_not_replaced(place):
    place.write_recipe()
    assert place.qlora("train", "recipe.yaml").exit_code == 0
    (place.run / "eval").mkdir()
    (place.run / "eval" / "results.json").write_text("mine")
    ended = place.qlora("eval", "runs/x", "--data", "sums.jsonl")
    assert (ended.exit_code, (place.run / "eval" / "results.json").read_text()) == (2, "mine")
    assert "runs/x/eval/results.json: was not written by qlora" in ended.said


def test_a_page_is_not_written_over_another_file(place):
    place.write_recipe()
    (place.here / "runs").mkdir()
    page = place.here / "runs" / "page.html"
    page.write_text("mine")
    ended = place.qlora("data", "show", "recipe.yaml", "--html", "runs/page.html")
    assert (ended.exit_code, page.read_text()) == (2, "mine")
    page.unlink()
    for _ in range(2):  # the second time over its own
        assert place.qlora("data", "show", "recipe.yaml", "--html", "runs/page.html").exit_code == 0


def test_what_is_written_can_be_read_by_others_as_far_as_the_umask_allows(place):
    place.write_recipe(**TWO_STEPS)
    before = os.umask(0o027)
    try:
        for command in (("train", "recipe.yaml"), ("merge", "runs/x"), ("export", "runs/x", "--out", "runs/out")):
            assert place.qlora(*command).exit_code == 0
    finally:
        os.umask(before)
    files = [path for path in (place.here / "runs").rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}
