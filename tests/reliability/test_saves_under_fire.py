"""A save that is killed or refused at any of its system calls costs that save and nothing else."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qlora_cli.run.checkpoints import list_checkpoints, newest_whole
from qlora_cli.run.claim import mark
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.files import certify
from tests.reliability.conftest import num_cases
from tests.reliability.harness import saves
from tests.reliability.harness.forkserver import ForkServer
from tests.reliability.harness.strace import STORING_CALLS, Call, Fault, need_strace, run_with_fault, trace_calls

SAVE = "tests.reliability.harness.saves:save"
KILL = "signal=SIGKILL"
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EACCES", "EINTR", "EMFILE")
REFUSED = 5
ADAPTER = "adapter_model.safetensors"
DAMAGED = b"damaged"


def damage(run: RunDirectory, step: int) -> None:
    (run.checkpoints_path / f"step-{step:06d}" / ADAPTER).write_bytes(DAMAGED)


@dataclass(frozen=True)
class Scene:
    """What lies in the run before the save that is disturbed."""

    steps: tuple[int, ...]
    """Checkpoints that are there."""

    step: int | None
    """The step to be saved; None for the final adapter."""

    prepare: Callable[[RunDirectory], None] = lambda run: None


def leave_leftovers(run: RunDirectory) -> None:
    for name in (".step-000006.staging", ".step-000002.retired"):
        shutil.copytree(run.checkpoints_path / "step-000004", run.checkpoints_path / f"{name}.new")
        certify(run.checkpoints_path / f"{name}.new", name)


SCENES = {
    "the first": Scene((), 2),
    "a later one": Scene((2, 4), 6),
    "after a kill": Scene((2, 4), 6, leave_leftovers),
    "in place of a damaged one": Scene((2, 4), 4, lambda run: damage(run, 4)),
    "before a damaged one": Scene((2, 8), 5, lambda run: damage(run, 8)),
    "the adapter": Scene((2, 4), None),
    "the adapter again": Scene((2, 4), None, saves.save_final_adapter),
}


class Field:
    """Runs that are ready for a save, and a server whose children do it."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._ready: dict[str, Path] = {}
        self._calls: dict[str, Counter[str]] = {}

    def run(self, name: str) -> RunDirectory:
        """A new copy of the run of a scene."""
        if name not in self._ready:
            run = RunDirectory(self._folder / "ready" / name)
            run.path.mkdir(parents=True)
            mark(run)
            run.recipe_path.write_text("name: run\n")
            for step in SCENES[name].steps:
                saves.save_step(run, step)
            SCENES[name].prepare(run)
            self._ready[name] = run.path
        copy = self._folder / "run"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._ready[name], copy)
        return RunDirectory(copy)

    def faults(self, name: str, effect: str) -> list[Fault]:
        """One for each call of the undisturbed save."""
        if name not in self._calls:
            self._calls[name] = Counter(call.name for call in self.trace(self.run(name), SCENES[name].step))
        return [
            Fault(call, number, effect) for call in STORING_CALLS for number in range(1, self._calls[name][call] + 1)
        ]

    def save(self, run: RunDirectory, step: int | None, fault: Fault) -> tuple[int, str]:
        """Exit code and output of a process that saves `step` and meets a fault."""
        log = self._log()
        exit_code = run_with_fault(self._server, SAVE, {"run": str(run.path), "step": step}, fault, log=log)
        return exit_code, log.read_text()

    def trace(self, run: RunDirectory, step: int | None) -> list[Call]:
        """What an undisturbed save asks of the system."""
        return trace_calls(self._server, SAVE, {"run": str(run.path), "step": step}, log=self._log())

    def _log(self) -> Path:
        log = self._folder / "log.txt"
        log.unlink(missing_ok=True)
        return log


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    need_strace()
    with ForkServer("tests.reliability.harness.saves") as server:
        yield Field(server, tmp_path_factory.mktemp("saves"))


def harm(run: RunDirectory, scene: Scene, before: int | None, exit_code: int) -> list[str]:
    """What a disturbed save has broken."""
    found = []
    newest, skipped = newest_whole(run.checkpoints_path, saves.FACTS)
    step = newest.step if newest else None
    if step not in (before, scene.step):
        found.append(f"the newest whole checkpoint is {step}, not {before} or {scene.step}")
    if exit_code == 0 and scene.step is not None and step != scene.step:
        found.append(f"exit 0 without checkpoint {scene.step}")
    if any((item.path / ADAPTER).read_bytes() != DAMAGED for item, _ in skipped):
        found.append(f"a half checkpoint is visible: {skipped}")
    had_adapter = scene.prepare is saves.save_final_adapter
    if had_adapter and not run.is_finished:
        found.append("the old adapter is gone, and no new one is there")
    if run.is_finished and not (run.adapter_path / ADAPTER).is_file():
        found.append("half an adapter is visible")
    return found


def harm_in_the_next(run: RunDirectory) -> list[str]:
    """What is still broken after the next, undisturbed save."""
    step = max([item.step for item in list_checkpoints(run.checkpoints_path)], default=0) + 2
    if saves.save(str(run.path), step) != 0:
        return ["the next save is refused"]
    newest, skipped = newest_whole(run.checkpoints_path, saves.FACTS)
    names = sorted(path.name for path in run.checkpoints_path.iterdir())
    is_tidy = len(names) <= saves.KEPT and all(name.startswith("step-") for name in names)
    is_whole = newest is not None and newest.step == step and not skipped
    return [] if is_tidy and is_whole else [f"after the next save: {names}, {newest}, {skipped}"]


def disturb(field: Field, name: str, *faults: Fault) -> list[str]:
    """Save with each of the faults in turn, then once without; what went wrong."""
    run = field.run(name)
    scene = SCENES[name]
    found = []
    for fault in faults:
        before = newest_whole(run.checkpoints_path)[0]
        exit_code, said = field.save(run, scene.step, fault)
        found += harm(run, scene, before.step if before else None, exit_code)
        found += wrong_end(run, fault, exit_code, said)
    return [f"{name}, {', '.join(map(str, faults))}: {problem}" for problem in [*found, *harm_in_the_next(run)]]


def wrong_end(run: RunDirectory, fault: Fault, exit_code: int, said: str) -> list[str]:
    """Whether the process ended other than it should at `fault`, which a second save may not come to."""
    if exit_code == 0 or (fault.effect == KILL and exit_code == -signal.SIGKILL):
        return []
    if fault.effect == KILL or exit_code != REFUSED:
        return [f"exit {exit_code}: {said.splitlines()[-1:]}"]
    has_place = re.search(rf"^error: {re.escape(str(run.path))}(/[^:]*)?: ", said, flags=re.MULTILINE)
    return [] if has_place and "--resume" in said else [f"an error without place or way on: {said}"]


SHARES = pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.torture)])
"""Each fourth call, other ones in each scene and with each error, or all of them."""


@SHARES
@pytest.mark.parametrize("name", SCENES)
def test_a_kill_at_any_call_of_a_save_leaves_whole_checkpoints_only(field, name, every):
    faults = field.faults(name, KILL)
    assert len(faults) > 10
    some = faults[list(SCENES).index(name) % every :: every]
    assert [problem for fault in some for problem in disturb(field, name, fault)] == []


@SHARES
@pytest.mark.parametrize("error", ERRORS)
def test_a_call_of_a_save_that_fails_is_an_error_with_a_way_on(field, error, every):
    faults = field.faults("after a kill", f"error={error}")
    assert len(faults) >= 50
    some = faults[ERRORS.index(error) % every :: every]
    assert [problem for fault in some for problem in disturb(field, "after a kill", fault)] == []


def test_what_a_save_writes_is_on_the_disk_before_it_has_its_name_and_older_ones_go_after_that(field):
    run = field.run("a later one")
    calls = field.trace(run, 6)
    stage = re.compile(r".*/\.step-000006\.staging-\d+")
    committed = next(at for at, call in enumerate(calls) if call.name == "rename" and stage.fullmatch(call.path))
    flushed = {call.path for call in calls[:committed] if call.name == "fsync"}
    names = [path.name for path in (run.checkpoints_path / "step-000006").iterdir()]
    stage_path = calls[committed].path
    assert {stage_path, *(f"{stage_path}/{name}" for name in names)} <= flushed
    after = [call for call in calls[committed + 1 :] if call.name in ("fsync", "rename", "unlinkat", "rmdir")]
    assert (after[0].name, after[0].path) == ("fsync", str(run.checkpoints_path))
    assert {call.name for call in after[1:]} == {"rename", "unlinkat", "rmdir"}


@pytest.mark.torture
@pytest.mark.parametrize(
    ("effects", "count"),
    [((KILL,), num_cases("KILLED_SAVES", 1000)), (ERRORS, num_cases("REFUSED_SAVES", 3000))],
    ids=["killed", "refused"],
)
def test_two_disturbed_saves_in_a_row(field, effects, count):
    chance = random.Random(count)
    found = []
    for _ in range(count):
        name = chance.choice(list(SCENES))
        effect = chance.choice(effects)
        faults = field.faults(name, effect if effect == KILL else f"error={effect}")
        found += disturb(field, name, *chance.choices(faults, k=2))
    assert found == []
