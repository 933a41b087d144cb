"""`qlora train` that is killed from outside and started again until it ends by itself, beside an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from qlora_cli.run.checkpoints import list_checkpoints
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.inventory import INVENTORY_NAME
from tests.reliability.harness import rank_runs
from tests.reliability.harness.forkserver import ONE_THREAD, ROOT, ForkServer
from tests.reliability.harness.rank_runs import content, metrics, write_recipe

MANY_ROWS = 2_100
"""More than four batches of 512, so that processes are forked to prepare them."""

LOOK_SECONDS = 0.01

EVERY_EPOCH = {"eval_strategy": "epoch", "eval_steps": None}

KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "float32": {},
    "nf4": {"quantization": {}, "training": {"save_steps": 2, "logging_steps": 3}},
    "packed": {
        "data": {"packing": True, "max_length": 128},
        "training": {"gradient_accumulation_steps": 2},
        "eval": EVERY_EPOCH,
    },
    "many rows": {"training": {"save_strategy": "epoch", "save_steps": None}, "eval": EVERY_EPOCH},
}
"""Name -> how its recipe differs from one of eight steps in float32, saved after each, evaluated after each second."""

LAST_STEP = 8

OVERRUN = 1.1
"""Moments are drawn from this many times the undisturbed life, so that some processes have ended by themselves."""


class Allocation(Protocol):
    """A process that was started."""

    pid: int

    def wait(self) -> int:
        """Its exit code, or the negative number of the signal that ended it."""


Start = Callable[[list[str], Path, Path], Allocation]
"""Starts `qlora` with arguments, with a folder for its cache and a log for what it prints."""


@dataclass(frozen=True)
class Case:
    """One run and what happens to it."""

    number: int
    kind: str
    moments: tuple[float, ...]
    """When each process is killed, as a share of an undisturbed one's life."""

    is_group: bool
    """Whether the workers that a process has forked are killed with it."""

    after_step: int | None = None
    """Moments count from when a checkpoint of this step is there, or a later one, of step 0 from when the run is; None
    for the start of the process."""


@dataclass(frozen=True)
class Straight:
    """A run that nothing disturbed."""

    run: Path
    cache: Path
    seconds_tracing: float
    """Its life with an empty cache, where the step has to be traced first."""

    seconds: float
    """Its life where the cache knows what the step needs."""


def draw_late_cases(count: int, kinds: list[str]) -> list[Case]:
    """As `draw_cases`, but that every second kill comes after a step of chance, up to a hundredth of a life later.

    Most of a command line's life is its start, and all of it where the machine is slower than it was when measured.
    """
    chance = random.Random(count)
    cases = []
    for case in draw_cases(count, kinds):
        if case.number % 4 in (0, 3):
            moments = (0.01 * chance.random(), *case.moments[1:])
            case = replace(case, moments=moments, after_step=chance.randint(1, LAST_STEP // 2))
        cases.append(case)
    return cases


def draw_cases(count: int, kinds: list[str]) -> list[Case]:
    """Cases of every kind in turn; first kills fall evenly over a life, a fifth of the runs are killed again.

    A ninth of them falls just after a run has begun: before its first checkpoint there is little time, and a life that
    was measured while others ran may have been so much longer that no share of it ends there.
    """
    chance = random.Random(count)
    order = chance.sample(range(count), count)
    cases = []
    for number in range(count):
        moments = [OVERRUN * (order[number] + chance.random()) / count]
        is_early = number % 9 == 3
        if is_early:
            moments = [0.01 * chance.random()]
        if number % 5 == 0:
            moments += [OVERRUN * chance.random() for _ in range(chance.randint(1, 2))]
        is_group = number // len(kinds) % 2 == 0
        kind = kinds[number % len(kinds)]
        cases.append(Case(number, kind, tuple(moments), is_group, after_step=0 if is_early else None))
    return cases


def write_recipes(folder: Path, base: Path, rows: Path) -> dict[str, Path]:
    """A recipe of each kind."""
    many = folder / "many.jsonl"
    lines = (json.dumps({"instruction": f"add {n} and {n}", "output": str(2 * n)}) for n in range(MANY_ROWS))
    many.write_text("\n".join(lines))
    recipes = {}
    for kind, changes in KINDS.items():
        sections: dict[str, dict[str, Any]] = {
            "data": {"eval_fraction": 0.5},
            "training": {"gradient_accumulation_steps": 5, "save_steps": 1, "save_total_limit": 2},
        }
        if kind == "many rows":
            few = {"path": str(many), "weight": 24 / MANY_ROWS}
            sections["data"] = {"train": [few], "eval": str(rows), "eval_fraction": None}
        for section, keys in changes.items():
            sections[section] = {**sections.get(section, {}), **keys}
        recipes[kind] = write_recipe(folder / f"{kind}.yaml", base, rows, **sections)
    return recipes


def qlora_with(cache: str, arguments: list[str], signals_at: tuple[str, int, list[int]] | None = None) -> int:
    """In a child of a fork server: the command line with a cache of its own."""
    os.environ["QLORA_CACHE"] = cache
    return rank_runs.qlora(0, 1, 0, arguments, signals_at=signals_at)


def forked_from(server: ForkServer) -> Start:
    """Processes that start in milliseconds."""

    def start(arguments: list[str], cache: Path, log: Path) -> Allocation:
        asked = {"cache": str(cache), "arguments": arguments}
        return server.start(f"{__name__}:qlora_with", asked, log=log)

    return start


def command_line(arguments: list[str], cache: Path, log: Path) -> Allocation:
    """The real command line, leading a group of processes as a shell would have it."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "qlora_cli", *arguments],
            cwd=ROOT,
            env=os.environ | ONE_THREAD | {"QLORA_CACHE": str(cache)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def kill_after(life: Allocation, seconds: float, *, is_group: bool, is_time: Callable[[], bool]) -> None:
    """Kill a process so long after its time has come, and with it its group, unless it has ended by itself before."""
    with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(life.pid)) as process:
        while not is_time():
            if select.select([process], [], [], LOOK_SECONDS)[0]:
                return
        if select.select([process], [], [], seconds)[0]:
            return
        if is_group:
            os.killpg(life.pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(process.fileno(), signal.SIGKILL)


def has_step(run: Path, step: int | None) -> bool:
    """Whether a checkpoint of this step is visible, or a later one; of step 0, whether the run has begun."""
    if step == 0:
        return RunDirectory(run).is_started
    return step is None or any(one.step >= step for one in list_checkpoints(run / "checkpoints"))


def phase_of(run: Path, cache: Path) -> str:
    """Where a killed process was, by what it left."""
    directory = RunDirectory(run)
    staged = [*run.glob(".*.sta*"), *directory.checkpoints_path.glob(".step-*")]
    if directory.is_finished:
        return "after the end"
    if staged:
        return "in a save"
    if list_checkpoints(directory.checkpoints_path):
        return "in training"
    if directory.is_started:
        return "before the first checkpoint"
    return "in the data" if list(cache.glob("data/.*.staging-*")) else "at the start"


class Field:
    """Recipes, their undisturbed runs, and a folder for the runs of the cases."""

    def __init__(self, folder: Path, recipes: dict[str, Path]) -> None:
        self._folder = folder
        self._recipes = recipes

    def measure(self, start: Start, kind: str) -> Straight:
        """Two undisturbed runs, the first with an empty cache; it is what other runs of the kind are compared with."""
        run, cache, again, known = (self._folder / f"{part}-{kind}" for part in ("straight", "cache", "again", "known"))
        seconds_tracing = self._timed(start, kind, run, cache)
        shutil.copytree(cache / "plans", known / "plans")
        return Straight(run, cache, seconds_tracing, self._timed(start, kind, again, known))

    def _timed(self, start: Start, kind: str, run: Path, cache: Path) -> float:
        started, log = time.monotonic(), run.with_suffix(".log")
        assert start(self._arguments(kind, run), cache, log).wait() == 0, log.read_text()
        return time.monotonic() - started

    def disturb(
        self, start: Start, case: Case, straight: Straight, last: Start | None = None
    ) -> tuple[list[str], list[str]]:
        """The phases in which the processes of a case were killed, and what is wrong with the run in the end.

        Args:
            last: starts the process that nobody kills; `start` where None.
        """
        run, cache = (self._folder / f"{name}-{case.kind}-{case.number}" for name in ("run", "cache"))
        log = run.with_suffix(".log")
        phases = []
        whole = straight.seconds_tracing
        if case.number % 3:  # tracing is not much to kill, and half of a life
            shutil.copytree(straight.cache / "plans", cache / "plans")
            whole = straight.seconds
        for moment in case.moments:
            life = start(self._arguments(case.kind, run), cache, log)
            is_time = partial(has_step, run, case.after_step)
            kill_after(life, moment * whole, is_group=case.is_group, is_time=is_time)
            exit_code = life.wait()
            if exit_code not in (0, -signal.SIGKILL):
                return phases, [f"{case}: exit {exit_code} after {phases}: {log.read_text()}"]
            phases.append(phase_of(run, cache))
        exit_code = (last or start)(self._arguments(case.kind, run), cache, log).wait()
        if exit_code != 0:
            return phases, [f"{case}: exit {exit_code} after {phases}: {log.read_text()}"]
        return phases, [f"{case}: {problem}, after {phases}" for problem in differences(run, cache, straight.run)]

    def _arguments(self, kind: str, run: Path) -> list[str]:
        resume = ["--resume"] if RunDirectory(run).is_started else []
        return ["train", str(self._recipes[kind]), "--run-dir", str(run), *resume]


STAY = (".lock", INVENTORY_NAME)


def leftovers(folder: Path) -> list[Path]:
    """What was being written in a folder. Locks and lists stay, and so may a kilobyte of a plan in the cache."""
    found = [path for path in folder.rglob(".*") if path.suffix != ".lock" and path.name not in STAY]
    return [path for path in found if path.parent.name != "plans"]


def differences(run: Path, cache: Path, straight: Path) -> list[str]:
    """What is not as in an undisturbed run, or should not be there."""
    found = [f"{path} is left" for path in (*leftovers(run), *leftovers(cache))]
    ours, theirs = (list_checkpoints(one / "checkpoints") for one in (run, straight))
    if [one.step for one in ours] != [one.step for one in theirs]:
        found.append(f"the checkpoints are of steps {[one.step for one in ours]}")
    found += [f"checkpoint {one.step}: {one.problem()}" for one in ours if one.problem()]
    if metrics(run) != metrics(straight):
        found.append(f"the metrics are {metrics(run)} and not {metrics(straight)}")
    ours_bytes, theirs_bytes = content(run), content(straight)
    return found + [f"{name} differs" for name in theirs_bytes if ours_bytes.get(name) != theirs_bytes[name]]
