"""An evaluation that is killed goes on where it was, and ends with the results of an undisturbed one."""

import json
import os
import random
import select
import shutil
import signal
import time
from pathlib import Path

import pytest

from qlora_cli.run.eval_results import PARTIAL_NAME, eval_files
from tests.deploy.models import save_run
from tests.reliability.conftest import num_cases
from tests.reliability.harness.forkserver import ForkServer
from tests.reliability.harness.killed_runs import leftovers

KILLED = -signal.SIGKILL
NUM_QUESTIONS = 16


def measure(run: str, rows: str) -> int:
    """In a child of the fork server: base and adapter on held-out rows, and generated answers."""
    from qlora_cli import api_reports

    api_reports.evaluate(run, data=rows, tasks=rows, general_text="none", max_new_tokens=4, batch_size=4)
    return 0


def results(run):
    """What an evaluation wrote; the folder's list has the same fingerprints then."""
    return {path.name: path.read_bytes() for path in sorted((run / "eval").iterdir())}


def num_kept(run):
    """Results that a killed evaluation left for the next one."""
    partial = run / "eval" / PARTIAL_NAME
    return max(0, partial.read_bytes().count(b"\n") - 1) if partial.exists() else 0


@pytest.fixture(scope="module")
def server():
    with ForkServer("qlora_cli.evaluate.request", "qlora_cli.api_reports", "transformers.models.llama") as started:
        yield started


def kill_at(child, moment):
    with os.fdopen(os.pidfd_open(child.pid)) as process:
        if not select.select([process], [], [], moment)[0]:
            os.kill(child.pid, signal.SIGKILL)
    return child.wait()


@pytest.mark.parametrize("count", [20, pytest.param(num_cases("EVALUATIONS", 200), marks=pytest.mark.torture)])
def test_a_killed_evaluation_continues_and_ends_with_the_same_results(count, server, tiny_base, tmp_path):
    run = save_run(tmp_path / "run", tiny_base).path
    rows = tmp_path / "rows.jsonl"
    asked = [{"instruction": f"add {n} and {7 * n}" * (1 + n % 3), "output": str(8 * n)} for n in range(NUM_QUESTIONS)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    log, function = tmp_path / "log", f"{__name__}:measure"
    started = time.monotonic()
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    assert server.run(function, {"run": str(whole), "rows": str(rows)}, log=log) == 0, log.read_text()[-2000:]
    seconds = time.monotonic() - started
    chance = random.Random(count)
    ends, kept = [], 0
    for number in range(count):
        place = tmp_path / f"run-{number}"
        shutil.copytree(run, place)
        arguments = {"run": str(place), "rows": str(rows)}
        moments = [1.1 * seconds * (number + chance.random()) / count, *[seconds * chance.random()] * (number % 4 == 0)]
        for moment in moments:
            ends.append(kill_at(server.start(function, arguments, log=log), moment))
            assert ends[-1] in (0, KILLED), log.read_text()[-2000:]
            kept += num_kept(place)
        assert server.run(function, arguments, log=log) == 0, log.read_text()[-2000:]
        assert _unplaced(results(place), place) == _unplaced(results(whole), whole)
        assert set(results(place)) == eval_files(place / "eval")
        assert leftovers(place) == []
        shutil.rmtree(place)
    assert KILLED in ends
    assert kept > 0
    assert "results of an evaluation that was stopped are taken up" in log.read_text()


def _unplaced(found: dict[str, bytes], run: Path) -> dict[str, bytes]:
    """The results without the name of the run's folder, and without the list, which has a fingerprint of it."""
    return {
        name: content.replace(str(run).encode(), b"RUN")
        for name, content in found.items()
        if name != ".qlora_files.json"
    }
