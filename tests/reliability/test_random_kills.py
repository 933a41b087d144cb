"""A process killed at any moment of its life costs what it did since the last checkpoint, and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any, TypeVar

import pytest

from tests.reliability.conftest import num_cases
from tests.reliability.harness.forkserver import ForkServer
from tests.reliability.harness.killed_runs import (
    KINDS,
    Case,
    Field,
    Start,
    Straight,
    command_line,
    draw_cases,
    draw_late_cases,
    forked_from,
    write_recipes,
)

NUM_LANES = 2
"""Processes at a time."""

NUM_FORKED = 18

PHASES = ("at the start", "before the first checkpoint", "in training", "after the end")
"""Each must be met, or the kills would show little. Saves are short; `test_saves_under_fire.py` kills each of their
calls."""

T = TypeVar("T")


@pytest.fixture(scope="module")
def field(tiny_base, chat_data, tmp_path_factory) -> Field:
    folder = tmp_path_factory.mktemp("kills")
    return Field(folder, write_recipes(folder, tiny_base, chat_data))


@pytest.fixture(scope="module")
def forked() -> Iterator[list[Start]]:
    """A fork server for each lane."""
    with ExitStack() as stack:
        servers = [ForkServer("tests.reliability.harness.killed_runs") for _ in range(NUM_LANES)]
        yield [forked_from(stack.enter_context(server)) for server in servers]


@pytest.fixture(scope="module")
def straight(field, forked) -> dict[str, Straight]:
    """Undisturbed runs of every kind, in all lanes together, since each slows the others down."""
    return measure(field, forked, list(KINDS))


def in_lanes(lanes: Sequence[Start], do: Callable[[Start, Any], T], items: Sequence[Any]) -> list[T]:
    """What is done with each item, in whichever lane is free."""
    free: SimpleQueue[Start] = SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def in_a_lane(item: Any) -> T:
        lane = free.get()
        try:
            return do(lane, item)
        finally:
            free.put(lane)

    with ThreadPoolExecutor(len(lanes)) as pool:
        return list(pool.map(in_a_lane, items))


def measure(field: Field, lanes: Sequence[Start], kinds: Sequence[str]) -> dict[str, Straight]:
    """An undisturbed run of each kind."""
    runs = in_lanes(lanes, lambda lane, kind: field.measure(lane, kind), kinds)
    return dict(zip(kinds, runs, strict=True))


def disturb(
    field: Field,
    lanes: Sequence[Start],
    cases: Sequence[Case],
    straight: dict[str, Straight],
    last: Start | None = None,
) -> Counter[str]:
    """Go through the cases in all lanes; how often processes were killed in each phase.

    Args:
        last: starts the process that nobody kills, where the lane does not.
    """
    outcomes = in_lanes(lanes, lambda lane, case: field.disturb(lane, case, straight[case.kind], last), cases)
    assert "\n".join(problem for _, problems in outcomes for problem in problems) == ""
    return Counter(phase for phases, _ in outcomes for phase in phases)


def test_a_run_killed_at_any_moments_and_resumed_is_the_undisturbed_one(field, forked, straight, record_property):
    phases = disturb(field, forked, draw_cases(NUM_FORKED, list(KINDS)), straight)
    record_property("phases", dict(phases))
    assert [phase for phase in PHASES if not phases[phase]] == []


def test_a_command_line_killed_as_it_starts_or_trains_and_resumed_is_the_undisturbed_run(field, forked, straight):
    """Beside runs that were forked; a share of the life of one of those lies in the imports of a real one.

    What is left is resumed by a process that was forked: the long version has a real one there too.
    """
    chance = random.Random(NUM_FORKED)
    at_the_start = Case(NUM_FORKED, "many rows", (chance.random(),), is_group=False)
    in_training = Case(NUM_FORKED + 1, "float32", (0.01 * chance.random(),), is_group=True, after_step=2)
    phases = disturb(field, [command_line], [at_the_start, in_training], straight, forked[0])
    assert phases["at the start"] == 1
    assert phases["in training"] + phases["in a save"] == 1


@pytest.mark.torture
def test_a_command_line_killed_at_any_moments_and_resumed_is_the_undisturbed_run(
    tiny_base, chat_data, tmp_path, record_property
):
    field = Field(tmp_path, write_recipes(tmp_path, tiny_base, chat_data))
    cases = draw_late_cases(num_cases("COMMAND_LINES", 12), ["float32", "many rows"])
    lanes = [command_line] * NUM_LANES
    phases = disturb(field, lanes, cases, measure(field, lanes, ["float32", "many rows"]))
    record_property("phases", dict(phases))
    assert phases["at the start"] > 0
    assert phases["in training"] + phases["in a save"] >= 3


@pytest.mark.torture
def test_many_runs_killed_at_any_moments_and_resumed_are_the_undisturbed_one(field, forked, straight, record_property):
    phases = disturb(field, forked, draw_cases(num_cases("KILLS", 2000), list(KINDS)), straight)
    record_property("phases", dict(phases))
