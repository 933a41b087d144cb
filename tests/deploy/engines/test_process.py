"""Programs in a process of their own: what they started ends with whoever started them, also by `kill -9`."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_cli.deploy.engines.process import run_logged

PROJECT = Path(__file__).resolve().parents[3]

RUN = """
import sys
from pathlib import Path
from qlora_cli.deploy.engines.process import run_logged
pipe = int(sys.argv[2])
run_logged(["sh", "-c", f"sleep 300 & echo begun > /dev/fd/{pipe}; wait"], Path(sys.argv[1]), held=[pipe])
"""
"""A program that starts another one; both hold a pipe open as long as they run."""


def said(pipe):
    """What a pipe holds, empty once nobody can write to it; within 30 s."""
    assert select.select([pipe], [], [], 30)[0], "it runs on"
    return os.read(pipe, 100)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_runs_ends_with_the_process_that_started_it(tmp_path, number):
    reading, writing = os.pipe()
    command = [sys.executable, "-c", RUN, tmp_path / "log.txt", str(writing)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, pass_fds=[writing])
    os.close(writing)
    assert said(reading) == b"begun\n"
    process.send_signal(number)
    process.wait()
    assert said(reading) == b""
    os.close(reading)


@pytest.mark.parametrize("code", [0, 3])
def test_a_program_that_ends_gives_its_exit_code_and_is_not_killed(tmp_path, code):
    assert run_logged(["sh", "-c", f"echo said; exit {code}"], tmp_path / "log.txt") == code
    assert (tmp_path / "log.txt").read_text() == "said\n"
