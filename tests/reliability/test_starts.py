"""A stop signal at any moment of a start ends in one calm line: it is sent at calls inside the imports."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.conftest import num_cases

ROOT = Path(__file__).resolve().parents[2]
LIGHT = ("validate", "nowhere.yaml")
HEAVY = ("merge", "nowhere")
"""Commands that end with exit code 2 after their imports: of the recipe's room; of torch, transformers and peft."""

CALM = "SIGINT: stopped before it was done; nothing is left half written\n"

LOADING = re.compile(r"loading the libraries( \.\.\.|, \d+ s so far)\n")
"""Said before anything else where the imports take longer than two seconds, and again on a busy machine."""


def starts(arguments, *, at=(), name=None, after=()):
    """How the command ends with a signal at each of these calls, and after each of these times in seconds."""
    case = {"arguments": arguments, "signal": signal.SIGINT, "at": None, "name": name, "after": None}
    cases = [case | {"at": number} for number in at] + [case | {"after": seconds} for seconds in after]
    program = ROOT / "tests" / "reliability" / "harness" / "signalled_start.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, program], input=json.dumps(cases), capture_output=True, text=True, env=environment, check=True
    )
    return json.loads(done.stdout)


def undisturbed(arguments, *, name=None):
    (ended,) = starts(arguments, at=[0], name=name)
    assert ended["exit_code"] == 2
    return ended


def faults(ended, whole):
    """Those that did not end in the one line, alone or after all that is said without a signal.

    Before the first line of the program, and after its last, Ctrl-C ends it silently.
    """
    fine = ((130, CALM), (130, whole + CALM), (-2, ""), (-2, whole), (2, whole))
    return [result for result in ended if (result["exit_code"], LOADING.sub("", result["text"])) not in fine]


def test_ctrl_c_at_any_call_of_a_start_is_one_calm_line():
    whole = undisturbed(LIGHT)
    points = [*random.Random(8).sample(range(1, whole["calls"]), 12), whole["calls"] - 60]
    assert faults(starts(LIGHT, at=points), whole["text"]) == []


@pytest.mark.torture
def test_ctrl_c_at_many_calls_of_a_start_is_one_calm_line():
    whole = undisturbed(LIGHT)
    points = random.Random(9).choices(range(1, whole["calls"]), k=num_cases("STARTS", 200))
    assert faults(starts(LIGHT, at=points), whole["text"]) == []


def test_ctrl_c_while_a_class_names_its_members_is_one_calm_line():
    """Python 3.11 makes a RuntimeError of it."""
    whole = undisturbed(LIGHT, name="__set_name__")
    points = range(1, whole["calls"] + 1, 15)  # the 16th call is among them
    assert len(points) > 4
    assert faults(starts(LIGHT, at=points, name="__set_name__"), whole["text"]) == []


@pytest.mark.parametrize("count", [3, pytest.param(num_cases("STARTS", 200), marks=pytest.mark.torture)])
def test_ctrl_c_while_heavy_libraries_are_imported_is_one_calm_line(count):
    chance = random.Random(count)
    delays = [chance.uniform(0.5, 4.0) for _ in range(count)]  # they take 4 s on one idle core
    whole = LOADING.sub("", undisturbed(HEAVY)["text"])
    assert faults(starts(HEAVY, after=delays), whole) == []
