"""The real command line: in this process, and in one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qlora_cli.cli import app
from tests.reliability.harness.forkserver import Child, ForkServer
from tests.reliability.harness.rank_runs import has_ended


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which must be JSON and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a command in the folder of the test."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["qlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            app.main()
        printed = capsys.readouterr()
        return Ran(exited.value.code or 0, printed.out, printed.err)

    return run


@pytest.fixture
def start(tmp_path):
    """Start a command in a process of its own; what still runs when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        code = "import sys; from qlora_cli.cli.app import main; sys.exit(main())"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def forked_main(folder: str, arguments: list[str], out: str, err: str) -> int:
    """In a child of a fork server: the command line, as in a process of its own."""
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        with open(path, "w") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["qlora", *arguments]
    try:
        app.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@dataclass
class Forked:
    """A command that was forked with the libraries loaded."""

    child: Child
    out: Path
    err: Path

    def is_running(self) -> bool:
        return not has_ended(self.child.pid)

    def stop(self, number: signal.Signals) -> Ran:
        """Send it a signal; how it ended."""
        os.kill(self.child.pid, number)
        return Ran(self.child.wait(), self.out.read_text(), self.err.read_text())


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """Start a command in a process of its own, where its imports are not what is tested.

    What still runs when the test ends is killed.
    """
    monkeypatch.setenv("NO_COLOR", "1")
    started: list[Forked] = []
    with ForkServer() as server:

        def run(*arguments: object) -> Forked:
            out, err = tmp_path / "out.txt", tmp_path / "err.txt"
            for path in (out, err):
                path.touch()
            asked = {"folder": str(tmp_path), "arguments": [*map(str, arguments)], "out": str(out), "err": str(err)}
            started.append(Forked(server.start(f"{__name__}:{forked_main.__name__}", asked, log=err), out, err))
            return started[-1]

        yield run
        for each in started:
            if each.is_running():
                each.stop(signal.SIGKILL)


@pytest.fixture
def recipe_file(tmp_path, tiny_base, chat_data) -> Path:
    """`small.yaml`: four steps on the tiny base."""
    values = {
        "model": {"base_model": str(tiny_base)},
        "lora": {"r": 4},
        "data": {"train": str(chat_data), "max_length": 64, "eval_fraction": 0.1},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.01,
        },
    }
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(values))
    return path
