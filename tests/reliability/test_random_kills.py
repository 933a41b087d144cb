"""A process killed at any moment of its life costs what it did since the last checkpoint, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

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

NUM_FORKED, NUM_REAL = 36, 4

PHASES = ("at the start", "before the first checkpoint", "in training", "after the end")
"""Each must be met, or the kills would show little. Saves are short; `test_saves_under_fire.py` kills each of their
calls."""


@pytest.fixture
def field(tiny_base, chat_data, tmp_path) -> Field:
    return Field(tmp_path, write_recipes(tmp_path, tiny_base, chat_data))


@pytest.fixture(scope="module")
def forked() -> Iterator[list[Start]]:
    """A fork server for each lane."""
    modules = ("qlora_cli.train.session", "qlora_cli.cli.app", "tests.reliability.harness.killed_runs")
    with ExitStack() as stack:
        servers = [ForkServer(*modules) for _ in range(NUM_LANES)]
        yield [forked_from(stack.enter_context(server)) for server in servers]


def measure(field: Field, lanes: Sequence[Start], kinds: Sequence[str]) -> dict[str, Straight]:
    """Undisturbed runs of every kind, in all lanes at once, since each slows the others down."""
    straight = {}
    with ThreadPoolExecutor(len(lanes)) as pool:
        for kind in kinds:
            runs = [pool.submit(field.measure, lane, kind, f"{kind}-{at}") for at, lane in enumerate(lanes)]
            straight[kind] = max((run.result() for run in runs), key=lambda one: one.seconds)
    return straight


def disturb(field: Field, lanes: Sequence[Start], cases: Sequence[Case]) -> Counter[str]:
    """Go through the cases in all lanes; how often processes were killed in each phase."""
    straight = measure(field, lanes, sorted({case.kind for case in cases}))
    free: SimpleQueue[Start] = SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def in_a_lane(case: Case) -> tuple[list[str], list[str]]:
        lane = free.get()
        try:
            return field.disturb(lane, case, straight[case.kind])
        finally:
            free.put(lane)

    with ThreadPoolExecutor(len(lanes)) as pool:
        outcomes = list(pool.map(in_a_lane, cases))
    assert "\n".join(problem for _, problems in outcomes for problem in problems) == ""
    return Counter(phase for phases, _ in outcomes for phase in phases)


def test_a_run_killed_at_any_moments_and_resumed_is_the_undisturbed_one(field, forked, record_property):
    phases = disturb(field, forked, draw_cases(NUM_FORKED, list(KINDS)))
    record_property("phases", dict(phases))
    assert [phase for phase in PHASES if phases[phase] < 3] == []


def test_a_command_line_killed_at_any_moments_and_resumed_is_the_undisturbed_run(field, record_property):
    phases = disturb(field, [command_line] * NUM_LANES, draw_late_cases(NUM_REAL, ["float32", "many rows"]))
    record_property("phases", dict(phases))
    assert phases["at the start"] > 0
    assert phases["in training"] + phases["in a save"] >= 3


@pytest.mark.torture
def test_many_runs_killed_at_any_moments_and_resumed_are_the_undisturbed_one(field, forked, record_property):
    phases = disturb(field, forked, draw_cases(num_cases("KILLS", 2000), list(KINDS)))
    record_property("phases", dict(phases))
