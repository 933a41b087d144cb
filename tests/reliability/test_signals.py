"""A signal at any moment of any command costs what was not yet done, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

import pytest

from qlora_cli.interruption import STOP_SIGNALS
from tests.reliability.conftest import num_cases
from tests.reliability.harness.forkserver import ForkServer
from tests.reliability.harness.killed_runs import write_recipes
from tests.reliability.harness.signalled_runs import (
    PHASES,
    Case,
    Scene,
    draw_cases,
    draw_outside,
    one_of_each,
    single_and_double,
)

NUM_LANES = 2


@pytest.fixture(scope="module")
def servers() -> Iterator[list[ForkServer]]:
    with ExitStack() as stack:
        servers = [ForkServer("tests.reliability.harness.signalled_runs") for _ in range(NUM_LANES)]
        yield [stack.enter_context(server) for server in servers]


@pytest.fixture(scope="module")
def scene(servers, tiny_base, chat_data, tmp_path_factory) -> Scene:
    folder = tmp_path_factory.mktemp("signals")
    scene = Scene(folder, write_recipes(folder, tiny_base, chat_data), chat_data)
    scene.prepare(servers[0])
    return scene


def in_lanes(
    servers: Sequence[ForkServer], check: Callable[[ForkServer, Case], list[str]], cases: Sequence[Case]
) -> str:
    """What is wrong with any case; the servers work in parallel."""
    free: SimpleQueue[ForkServer] = SimpleQueue()
    for server in servers:
        free.put(server)

    def in_a_lane(case: Case) -> list[str]:
        server = free.get()
        try:
            return check(server, case)
        finally:
            free.put(server)

    with ThreadPoolExecutor(len(servers)) as pool:
        return "\n".join(problem for problems in pool.map(in_a_lane, cases) for problem in problems)


def test_signals_in_every_phase_leave_in_good_order_and_the_next_try_ends_as_the_undisturbed_one(servers, scene):
    cases = draw_cases(random.Random(4), one_of_each())
    assert {case.phase for case in cases} == set(PHASES)
    assert {number for case in cases for number in case.signals} == set(STOP_SIGNALS)
    assert in_lanes(servers, scene.check, cases) == ""


@pytest.mark.torture
def test_signals_at_random_calls_and_from_outside_at_random_moments(servers, scene):
    chance = random.Random(5)
    count = num_cases("SIGNALS", 1600) // 2
    signals = [tuple(chance.choices(STOP_SIGNALS, k=chance.choice((1, 1, 2)))) for _ in range(count)]
    drawn = [(chance.choice(list(PHASES)), numbers) for numbers in signals]
    cases = draw_cases(chance, [*drawn, *single_and_double()])
    assert in_lanes(servers, scene.check, [*cases, *draw_outside(chance, len(cases), count)]) == ""
