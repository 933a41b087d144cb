"""A merge that is killed leaves a whole model folder or none, and never a changed base or adapter."""

import os
import random
import select
import signal
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.deploy.models import save_run
from tests.model.bases import save_toy
from tests.reliability.conftest import num_cases
from tests.reliability.harness.forkserver import ForkServer

KILLED = -signal.SIGKILL


def merge(run: str, out: str) -> int:
    """In a child of the fork server."""
    from qlora_cli.deploy.merge import MergeOptions, merge_run

    merge_run(Path(run), Path(out), MergeOptions(max_kl=10.0))
    return 0


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def server():
    with ForkServer("transformers.models.qwen3_moe") as started:
        yield started


@pytest.mark.parametrize("count", [6, pytest.param(num_cases("MERGES", 50), marks=pytest.mark.torture)])
def test_a_killed_merge_leaves_nothing_or_all(count, server, tmp_path):
    run = save_run(tmp_path / "run", save_toy("qwen3_moe", tmp_path / "base"), target_modules=["q_proj", "v_proj"])
    before = contents(tmp_path)
    log, asked = tmp_path / "log", f"{__name__}:merge"
    started = time.monotonic()
    arguments = {"run": str(run.path), "out": str(tmp_path / "whole")}
    assert server.run(asked, arguments, log=log) == 0, log.read_text()[-2000:]
    seconds, whole = time.monotonic() - started, contents(tmp_path / "whole")
    chance = random.Random(count)
    ended = []
    for number in range(count):
        out = tmp_path / f"out-{number}"
        child = server.start(asked, arguments | {"out": str(out)}, log=log)
        moment = seconds * (number + chance.random()) / count * 1.2
        with os.fdopen(os.pidfd_open(child.pid)) as process:
            if not select.select([process], [], [], moment)[0]:
                os.kill(child.pid, signal.SIGKILL)
        ended.append(child.wait())
        assert ended[-1] in (0, KILLED)
        if out.exists():
            names = {path.name for path in whole}
            assert {path.name for path in contents(out)} == names
            AutoModelForCausalLM.from_pretrained(out)
        assert ended[-1] == KILLED or out.exists()
    assert KILLED in ended
    assert {path: data for path, data in contents(tmp_path).items() if path in before} == before
