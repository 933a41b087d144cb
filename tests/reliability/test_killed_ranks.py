"""One of two processes killed at any moment: all end within 30 seconds, and the resumed run is the undisturbed one."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import pytest

from qlora_cli.run.checkpoints import newest_whole
from qlora_cli.run.directory import RunDirectory
from tests.reliability.conftest import num_cases
from tests.reliability.harness.killed_runs import leftovers
from tests.reliability.harness.rank_runs import Ranks, content, free_port, has_ended, metrics, serving, write_recipe
from tests.waiting import wait_until

SECONDS_TO_END = 30

POINTS = {
    "before they meet": ("start", 1),
    "in the data": ("qlora_cli.train.session:prepare_data", 1),
    "in the model": ("qlora_cli.train.setup:load_base", 1),
    "at the first step": ("qlora_cli.train.trainer:QloraTrainer.training_step", 1),
    "in a step": ("qlora_cli.train.trainer:QloraTrainer.compute_loss", 24),
    "between gradient and update": ("qlora_cli.train.trainer:QloraTrainer._get_grad_norm", 7),
    "in an evaluation": ("qlora_cli.model.eval_loss:labelled_losses", 6),
    "before a save": ("qlora_cli.train.trainer:QloraTrainer._save_checkpoint", 3),
    "after a save": ("qlora_cli.train.processes.collectives:ProcessGroup.barrier", 3),
    "at the end": ("qlora_cli.train.session:finalize_run", 1),
}
"""Moments that both processes come to -> function, and the most calls of it that a run is sure to make."""

POINTS_OF_FIRST = {
    "in the directory": ("qlora_cli.run.claim:_lock", 1),
    "in a save": ("qlora_cli.train.checkpoint.training_state:save_optimizer", 4),
    "in the seal": ("qlora_cli.run.checkpoints:write_json", 4),
    "in the rename": ("qlora_cli.run.folders:put_in_place", 4),
    "in the rotation": ("qlora_cli.train.saving_trainer:rotate_checkpoints", 4),
    "in the final adapter": ("qlora_cli.train.result:save_adapter", 1),
}
"""The same for what only the first process does."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("logs")) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def recipe(tiny_base, chat_data, tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe") / "two.yaml", tiny_base, chat_data)


@pytest.fixture(scope="module")
def straight(ranks, recipe, tmp_path_factory):
    """A run in two processes that nothing disturbs."""
    run = tmp_path_factory.mktemp("straight") / "run"
    outcome = ranks.run(["train", str(recipe), "--run-dir", str(run)])
    assert outcome.exit_codes == [0, 0], outcome.logs
    return run


def check_killed(ranks: Ranks, recipe: Path, straight: Path, run: Path, rank: int, killed_at: tuple[str, int]) -> float:
    """Kill a process of a run, look at what is left, resume, compare; the seconds that the other one took to end."""
    start = ["train", str(recipe), "--run-dir", str(run)]
    outcome = ranks.run(start, options={rank: {"killed_at": killed_at}, 1 - rank: {"seconds_to_meet": 8.0}})
    assert outcome.exit_codes[rank] == -signal.SIGKILL, outcome.logs
    assert outcome.exit_codes[1 - rank] == (2 if killed_at[0] == "start" else 5), outcome.logs
    assert outcome.spread < SECONDS_TO_END
    said = outcome.logs[1 - rank]
    assert said.count("error:") == 1
    assert re.search(rf"(process|rank) {rank} of 2\b", said)
    resumed = ranks.run([*start, "--resume"] if RunDirectory(run).is_started else start)
    assert resumed.exit_codes == [0, 0], resumed.logs
    assert content(run) == content(straight)
    assert metrics(run) == metrics(straight)
    assert leftovers(run) == []
    return outcome.spread


@pytest.mark.parametrize(
    ("rank", "point"),
    [
        (1, "before they meet"),
        pytest.param(0, "in the data", marks=pytest.mark.torture),
        pytest.param(1, "in a step", marks=pytest.mark.torture),
        (0, "in a save"),
        (1, "in an evaluation"),
    ],
)
def test_one_of_two_processes_killed_ends_both_and_the_resumed_run_is_the_undisturbed_one(
    ranks, recipe, straight, tmp_path, rank, point
):
    killed_at = (POINTS | POINTS_OF_FIRST)[point]
    check_killed(ranks, recipe, straight, tmp_path / "run", rank, killed_at)


@pytest.mark.parametrize(
    ("rank", "point", "said"),
    [
        (1, "in the data", "nothing is trained yet"),
        pytest.param(1, "in the model", "nothing is trained yet", marks=pytest.mark.torture),
        (1, "in an evaluation", "stopped at step 2 of 8; the checkpoint is saved"),
        (0, "at the end", None),
    ],
)
def test_a_signal_to_one_of_two_processes_ends_both_in_good_order(ranks, recipe, straight, tmp_path, rank, point, said):
    where, _ = POINTS[point]
    run, twice = tmp_path / "run", [signal.SIGTERM, signal.SIGTERM]  # the second one is the launcher's echo
    start = ["train", str(recipe), "--run-dir", str(run)]
    outcome = ranks.run(start, options={rank: {"signals_at": (where, 1, twice)}})
    assert outcome.exit_codes == ([0, 0] if said is None else [143, 143]), outcome.logs
    assert "".join(outcome.logs).count("error:") == (said is not None)
    assert said is None or said in "".join(outcome.logs)
    resumed = ranks.run([*start, "--resume"] if RunDirectory(run).is_started else start)
    assert resumed.exit_codes == [0, 0], resumed.logs
    assert content(run) == content(straight)
    assert metrics(run) == metrics(straight)


@pytest.mark.torture
@pytest.mark.parametrize("case", range(num_cases("RANKS", 40)))
def test_one_of_two_processes_killed_at_a_random_moment(ranks, recipe, straight, tmp_path, case, record_property):
    """The points in turn, each at a call of chance."""
    chance = random.Random(case)
    points = [(rank, *point) for rank in (0, 1) for point in POINTS.values()]
    points += [(0, *point) for point in POINTS_OF_FIRST.values()]
    rank, where, most = points[case % len(points)]
    killed_at = (where, chance.randint(1, most))
    record_property("seconds", check_killed(ranks, recipe, straight, tmp_path / "run", rank, killed_at))


class Launcher(Protocol):
    """A process of torchrun, leading a group of processes."""

    pid: int

    def wait(self) -> int:
        """Its exit code."""


def interpreter(arguments: list[str], log: Path) -> Launcher:
    """The launcher in a session of its own as a terminal would give it."""
    with log.open("w") as file:
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]
        return subprocess.Popen(command, stdout=file, stderr=file, text=True, start_new_session=True)


@contextmanager
def torchrun(start: Callable[[list[str], Path], Launcher], recipe: Path, run: Path, *more: str) -> Iterator[Launcher]:
    """Two processes of a long run, started by the real launcher; its log is `torchrun.log` beside the run."""
    launcher = ["--nproc-per-node", "2", "--master-port", str(free_port()), "-m", "qlora_cli"]
    train = ["train", str(recipe), "--run-dir", str(run), "--set", "training.max_steps=5000", *more]
    log = run.parent / "torchrun.log"
    log.unlink(missing_ok=True)
    process = start([*launcher, *train], log)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def newest_step(run: Path) -> int:
    """Of the checkpoints that are whole."""
    checkpoint, _ = newest_whole(run / "checkpoints")
    return checkpoint.step if checkpoint else 0


def exit_code_of(process: Launcher) -> int:
    """Of a launcher that ends in time."""
    wait_until(lambda: has_ended(process.pid), SECONDS_TO_END)
    return process.wait()


@pytest.mark.parametrize("is_forked", [True, pytest.param(False, marks=pytest.mark.torture)], ids=["forked", "real"])
def test_torchrun_ends_when_a_process_is_killed_and_a_resumed_run_stops_at_ctrl_c_with_a_checkpoint(
    ranks, recipe, tmp_path, is_forked
):
    """Ctrl-C reaches the processes twice: the terminal sends it to all, torchrun passes it on."""

    def fork(arguments: list[str], log: Path) -> Launcher:
        asked = {"arguments": arguments}
        return ranks.servers[0].start("tests.reliability.harness.torchrun:torchrun", asked, log=log)

    run, start = tmp_path / "run", fork if is_forked else interpreter
    with torchrun(start, recipe, run) as process:
        wait_until(lambda: newest_step(run), 120)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[1]), signal.SIGKILL)
        killed_at = time.monotonic()
        assert exit_code_of(process) != 0
        assert time.monotonic() - killed_at < SECONDS_TO_END
        assert all(has_ended(int(worker)) for worker in workers)
    before = newest_step(run)
    with torchrun(start, recipe, run, "--resume") as process:
        wait_until(lambda: newest_step(run) > before, 120)
        os.killpg(process.pid, signal.SIGINT)
        assert exit_code_of(process) != 0
    said = (tmp_path / "torchrun.log").read_text()
    assert said.count("stopped at step") == 1
    assert f"stopped at step {newest_step(run)} of 5000; the checkpoint is saved" in said
