"""Commands that get signals at a known call of a known function, and what has to hold when they have ended."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qlora_cli.interruption import STOP_SIGNALS
from qlora_cli.run.checkpoints import list_checkpoints, newest_whole
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.eval_results import PARTIAL_NAME
from qlora_cli.run.inventory import INVENTORY_NAME, write_inventory
from tests.reliability.harness import killed_runs
from tests.reliability.harness.forkserver import Child, ForkServer
from tests.reliability.harness.killed_runs import differences, leftovers

SECONDS_OF_LIFE = 2.5
"""About what the longest command takes."""

OLDER = {"config.json": b"{}", "model.safetensors": b"of an older adapter"}
"""A model folder that is there already; `--force` may replace it by a whole one only."""


@dataclass(frozen=True)
class Phase:
    """A stretch of a command."""

    command: str
    points: tuple[tuple[str, int], ...]
    """Functions, as `module:name`, and the most calls of each that are sure to come and lie before the last step."""

    kind: str = "float32"
    """Of recipe, as `killed_runs` names them."""

    has_started: bool = False
    """Whether a signal waits for a step to end."""


PHASES = {
    "start": Phase(
        "train",
        (
            ("qlora_cli.run.claim:_lock", 1),
            ("qlora_cli.train.session:load_tokenizer", 1),
            ("qlora_cli.train.setup:load_base", 1),
            ("qlora_cli.train.session:setup_trainer", 1),
        ),
    ),
    "data": Phase(
        "train",
        (
            ("qlora_cli.data.collect_rows:_take", 5),
            ("qlora_cli.data.build:write_packed_rows", 2),
            ("qlora_cli.data.prepare:write_json", 1),
        ),
        kind="many rows",
    ),
    "step": Phase("train", (("qlora_cli.train.trainer:QloraTrainer.compute_loss", 29),), has_started=True),
    "save": Phase(
        "train",
        (
            ("qlora_cli.train.checkpoint.training_state:save_optimizer", 7),
            ("qlora_cli.run.checkpoints:write_json", 7),
            ("qlora_cli.run.folders:put_in_place", 7),
        ),
        has_started=True,
    ),
    "rotate": Phase("train", (("qlora_cli.run.checkpoints:delete_folder", 5),), has_started=True),
    "evaluation": Phase("train", (("qlora_cli.model.eval_loss:labelled_losses", 48),), has_started=True),
    "eval": Phase(
        "eval",
        (
            ("qlora_cli.evaluate.contest:load_tuned", 1),
            ("qlora_cli.model.eval_loss:labelled_losses", 6),
            ("qlora_cli.evaluate.written:write_json", 1),
        ),
    ),
    "merge": Phase(
        "merge",
        (
            ("qlora_cli.deploy.merge:load_tuned", 1),
            ("qlora_cli.deploy.merge:record_logits", 3),
            ("qlora_cli.deploy.merge_stream:_in_threads", 1),
            ("qlora_cli.deploy.merge:write_model", 1),
            ("qlora_cli.deploy.merge:write_json", 1),
            ("qlora_cli.run.folders:put_in_place", 1),
        ),
    ),
    "export": Phase(
        "export",
        (
            ("qlora_cli.deploy.export:merge_into", 1),
            ("qlora_cli.deploy.merge:write_model", 1),
            ("qlora_cli.run.folders:put_in_place", 1),
            ("qlora_cli.deploy.export_attempts:prove", 1),
        ),
    ),
}


@dataclass(frozen=True)
class Case:
    """One command and the signals that it gets."""

    number: int
    phase: str
    signals: tuple[int, ...]

    where: str = ""
    """Function before whose call they are sent, by the process itself; empty where they come from outside."""

    call: int = 0
    moments: tuple[float, ...] = ()
    """Seconds before each signal from outside."""

    is_group: bool = False
    """Whether a signal from outside goes to all processes of the command, as those of a terminal do."""


def draw_cases(chance: random.Random, wanted: Sequence[tuple[str, tuple[int, ...]]]) -> list[Case]:
    """A point and a call for each phase and its signals."""
    cases = []
    for number, (phase, signals) in enumerate(wanted):
        where, most = chance.choice(PHASES[phase].points)
        cases.append(Case(number, phase, signals, where, chance.randint(1, most)))
    return cases


def draw_outside(chance: random.Random, first: int, count: int) -> list[Case]:
    """Cases with signals from outside at any moment, the second one soon after the first."""
    cases = []
    for number in range(first, first + count):
        signals = tuple(chance.choices(STOP_SIGNALS, k=chance.choice((1, 1, 2))))
        moments = (SECONDS_OF_LIFE * chance.random(), 0.3 * chance.random())[: len(signals)]
        is_group = chance.random() < 0.5
        cases.append(Case(number, chance.choice(list(PHASES)), signals, moments=moments, is_group=is_group))
    return cases


class Scene:
    """Recipes, undisturbed results, and a folder for the cases."""

    def __init__(self, folder: Path, recipes: dict[str, Path], rows: Path) -> None:
        self._folder = folder
        self._recipes = recipes
        self._rows = rows
        self.straight = {kind: folder / f"straight-{kind}" for kind in ("float32", "many rows")}
        self._results: dict[str, dict[str, bytes]] = {}

    def prepare(self, server: ForkServer) -> None:
        """Make the undisturbed runs, and what the commands make of one."""
        for kind, run in self.straight.items():
            self._run(server, kind, ["train", str(self._recipes[kind]), "--run-dir", str(run)])
        for command in ("eval", "merge", "export"):
            place = self._folder / f"straight-{command}"
            self._furnish(place, "float32", is_trained=True)
            self._run(server, command, self.arguments(PHASES[command], place))
            self._results[command] = files_in(self.result(PHASES[command], place))

    def _run(self, server: ForkServer, name: str, arguments: list[str]) -> None:
        log = self._folder / f"{name}.log"
        asked = {"cache": str(self._folder / "cache"), "arguments": arguments}
        assert server.run(f"{killed_runs.__name__}:qlora_with", asked, log=log) == 0, log.read_text()

    def _furnish(self, place: Path, kind: str, *, is_trained: bool) -> None:
        if is_trained:
            shutil.copytree(self.straight[kind], place / "run")
            for folder in (place / "out", place / "run" / "eval"):
                folder.mkdir()
                for name, content in OLDER.items():
                    (folder / name).write_bytes(content)
                write_inventory(folder)

    def arguments(self, phase: Phase, place: Path, *, is_resumed: bool = False) -> list[str]:
        """The command of a phase."""
        run, out = place / "run", ["--out", str(place / "out"), "--force"]
        train = ["train", str(self._recipes[phase.kind]), "--run-dir", str(run), *["--resume"] * is_resumed]
        commands = {
            "train": train,
            "eval": ["eval", str(run), "--data", str(self._rows)],
            "merge": ["merge", str(run), *out, "--dtype", "float32"],
            "export": ["export", str(run), *out],
        }
        return commands[phase.command]

    def result(self, phase: Phase, place: Path) -> Path:
        """The folder that the command of a phase writes."""
        return place / "run" / "eval" if phase.command == "eval" else place / "out"

    def start(self, server: ForkServer, case: Case, *, is_disturbed: bool = True) -> tuple[Child, Path]:
        """Start the command of a case; with it goes the folder of all that belongs to it."""
        phase, place = PHASES[case.phase], self._folder / f"case-{case.number}"
        if not place.exists():
            place.mkdir()
            self._furnish(place, phase.kind, is_trained=phase.command != "train")
            shutil.copytree(self._folder / "cache" / "plans", place / "cache" / "plans")  # no point is in a trace
        is_resumed = phase.command == "train" and RunDirectory(place / "run").is_started
        asked = {
            "cache": str(place / "cache"),
            "arguments": self.arguments(phase, place, is_resumed=is_resumed),
            "signals_at": [case.where, case.call, list(case.signals)] if is_disturbed and case.where else None,
        }
        return server.start(f"{killed_runs.__name__}:qlora_with", asked, log=place / "log"), place

    def check(self, server: ForkServer, case: Case) -> list[str]:
        """Send the signals of a case, look at what is left, run the command again and compare; what is wrong."""
        child, place = self.start(server, case)
        for moment, number in zip(case.moments, case.signals, strict=False):
            time.sleep(moment)
            with suppress(ProcessLookupError):
                (os.killpg if case.is_group else os.kill)(child.pid, number)
        exit_code, said = child.wait(), (place / "log").read_text()
        found = (
            wrong_end(case, exit_code, said, place / "run") if case.where else wrong_end_outside(case, exit_code, said)
        )
        if len(case.signals) == 1 and exit_code >= 0:
            found += [f"{path} is left" for path in leftovers(place)]
            found += ["a process is left"] * has_processes(child.pid)
        found += self.harm(case, place, is_done=exit_code == 0)
        found += self.wrong_second_end(server, case)
        return [f"{case}: {problem}\n{said}" for problem in found]

    def harm(self, case: Case, place: Path, *, is_done: bool) -> list[str]:
        """What is no longer whole, or no longer what it was before the command."""
        phase = PHASES[case.phase]
        if phase.command == "train":
            folder = place / "run" / "checkpoints"
            return [f"checkpoint {one.step}: {one.problem()}" for one in list_checkpoints(folder) if one.problem()]
        made = self._results[phase.command]
        allowed = [made] if is_done else [OLDER] if case.where else [OLDER, made]
        return [] if files_in(self.result(phase, place)) in allowed else ["what was there is not as it was"]

    def wrong_second_end(self, server: ForkServer, case: Case) -> list[str]:
        """How the command, run again or resumed, ends differently from an undisturbed one."""
        phase = PHASES[case.phase]
        child, place = self.start(server, case, is_disturbed=False)
        if child.wait() != 0:
            return [f"the second time it fails: {(place / 'log').read_text()}"]
        if phase.command == "train":
            return differences(place / "run", place / "cache", self.straight[phase.kind])
        is_same = files_in(self.result(phase, place)) == self._results[phase.command]
        left = [f"{path} is left the second time" for path in leftovers(place)]
        return left if is_same else [*left, "the result is another one"]


SPEED = re.compile(rb'"tokens_per_second": [^,\n]+')


def files_in(folder: Path) -> dict[str, bytes]:
    """Name -> content of what is in a folder, but for the list of it, what an evaluation keeps, and measured speed."""
    stays = (INVENTORY_NAME, PARTIAL_NAME)
    run = str(folder.parent).encode()  # results name the folder of each model
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in stays}
    return {name: SPEED.sub(b"", content.replace(run, b"RUN")) for name, content in contents.items()}


def has_processes(group: int) -> bool:
    """Whether a group of processes has members."""
    with suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def wrong_end(case: Case, exit_code: int, said: str, run: Path) -> list[str]:
    """What is wrong with exit code and words of a process that got its signals where the case says."""
    first, *more = case.signals
    found = ["a traceback"] if "Traceback" in said else []
    if more:
        return found if exit_code == -more[0] else [*found, f"exit {exit_code}"]
    if exit_code != 128 + first:
        return [*found, f"exit {exit_code}"]
    name = signal.Signals(first).name
    if PHASES[case.phase].command == "eval" and "results are kept" in said:
        words = [f"stopped by {name}", "the same command continues there"]
    elif PHASES[case.phase].command != "train":
        words = [f"{name}: stopped before it was done; nothing is left half written"]
    elif PHASES[case.phase].has_started:
        newest, _ = newest_whole(run / "checkpoints")
        words = [f"stopped at step {newest.step if newest else None} of 8; the checkpoint is saved", "--resume"]
    else:
        words = [f"stopped by {name}; nothing is trained yet", "start it again with the same command"]
    return found + [f"it does not say: {text}" for text in words if text not in said]


def wrong_end_outside(case: Case, exit_code: int, said: str) -> list[str]:
    """The same where nobody knows what the signals have met: even a process that has done all, or not yet begun."""
    allowed = {0, *(128 + number for number in case.signals), *(-number for number in case.signals)}
    return ["a traceback"] * ("Traceback" in said) + [f"exit {exit_code}"] * (exit_code not in allowed)


def single_and_double() -> list[tuple[str, tuple[int, ...]]]:
    """Every phase with every signal, and with one pair of them."""
    wanted: list[tuple[str, tuple[int, ...]]] = [(phase, (number,)) for phase in PHASES for number in STOP_SIGNALS]
    pairs = [(first, second) for first in STOP_SIGNALS for second in STOP_SIGNALS]
    return wanted + [(phase, pairs[3 * at % len(pairs)]) for at, phase in enumerate(PHASES)]


def one_of_each() -> list[tuple[str, tuple[int, ...]]]:
    """Every phase with a signal, the signals in turn; every second phase with one pair of them."""
    every = single_and_double()
    num_signals = len(STOP_SIGNALS)
    single = [every[num_signals * at + at % num_signals] for at in range(len(PHASES))]
    return single + every[num_signals * len(PHASES) :: 2]
