"""Work spread over processes: order, faults, and no process that outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from qlora_cli.data import workers
from qlora_cli.data.workers import map_in_order
from qlora_cli.errors import DataError, ResourceError

pytestmark = pytest.mark.slow

ORPHANS = """
import os, time
from qlora_cli.data import workers
workers.num_cores = lambda: 3
def slow(number):
    time.sleep(0.2)
    return os.getpid()
for _, pid in workers.map_in_order(slow, range(100)):
    print(pid, flush=True)
"""


@pytest.fixture(autouse=True)
def three_cores(monkeypatch):
    monkeypatch.setattr(workers, "num_cores", lambda: 3)


def test_results_come_in_the_order_of_their_items():
    def wait_and_square(number):
        time.sleep(0.01 * (number % 3))
        return number * number

    assert list(map_in_order(wait_and_square, range(20))) == [(number, number * number) for number in range(20)]


def test_many_items_are_done_in_other_processes_and_few_in_this_one():
    pids = {pid for _, pid in map_in_order(lambda _: os.getpid(), range(30))}
    assert os.getpid() not in pids
    assert {pid for _, pid in map_in_order(lambda _: os.getpid(), range(3))} == {os.getpid()}


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_in_order(abs, items())
    next(results)
    assert len(taken) < 20
    results.close()


def test_a_fault_in_a_worker_reaches_the_caller():
    def refuse(number):
        raise DataError("no", place=f"a.jsonl:{number}")

    with pytest.raises(DataError, match=r"a\.jsonl:0: no"):
        list(map_in_order(refuse, range(10)))


def test_a_killed_worker_is_a_lack_of_memory():
    def die(number):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ResourceError, match="was killed, most likely for memory"):
        list(map_in_order(die, range(10)))


def test_workers_end_when_their_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = {int(parent.stdout.readline()) for _ in range(6)}
    assert parent.pid not in pids
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
