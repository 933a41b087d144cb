"""Processes that start in milliseconds: a server loads the libraries once and forks for each case.

    with ForkServer("qlora_cli.train.session") as server:
        child = server.start("tests.reliability.harness.saves:save", {"run": "runs/a", "step": 6}, log=path)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL

A child is an ordinary process of one thread that has done nothing yet; it calls one function and exits with the
number that this returns. The server forks and waits and never computes anything, so no thread pool is lost.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Variables that leave the other cores to other processes."""

CRASHED = 70
"""Exit code of a child whose function raised; the traceback is in its log."""

PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = -1


class ForkServer:
    """A server process; one child at a time.

    Args:
        modules: imported before the first fork.
        environment: beside the variables of this process, for the server and its children.
    """

    def __init__(self, *modules: str, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | ONE_THREAD | (environment or {}),
        )

    def __enter__(self) -> ForkServer:
        assert self._read() == {"ready": True}
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def start(self, function: str, arguments: dict[str, Any], *, log: Path, is_held: bool = False) -> Child:
        """Fork a child.

        Args:
            function: `module:name`, called with `arguments`, which JSON must hold; it returns the exit code.
            log: takes what the child prints and its traceback.
            is_held: the child stops itself before it calls the function, until it gets SIGCONT.
        """
        asked = {"function": function, "arguments": arguments, "log": str(log), "is_held": is_held}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        pid = self._read()["pid"]
        if is_held:
            assert self._read() == {"held": True}
        return Child(pid, self)

    def run(self, function: str, arguments: dict[str, Any], *, log: Path) -> int:
        """Fork a child and wait for its exit code."""
        return self.start(function, arguments, log=log).wait()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        assert line, "the fork server has died"
        return json.loads(line)


class Child:
    """A process that the server forked."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self._server = server
        self._exit_code: int | None = None

    def wait(self) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        if self._exit_code is None:
            self._exit_code = self._server._read()["exit_code"]
        return self._exit_code


def _serve(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # a collection in a child would otherwise copy every page
    _answer({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _work(asked)
        _answer({"pid": pid})
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            _answer({"held": True})
            _, status = os.waitpid(pid, 0)
        _answer({"exit_code": os.waitstatus_to_exitcode(status)})


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _work(asked: dict[str, Any]) -> None:
    """In the child; never returns."""
    exit_code = CRASHED
    try:
        os.setpgid(0, 0)
        log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(source, descriptor)
        for standard in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(standard, signal.SIG_DFL)
        if asked["is_held"]:
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        module, _, name = asked["function"].partition(":")
        exit_code = getattr(importlib.import_module(module), name)(**asked["arguments"])
    except BaseException:  # noqa: BLE001 - the frame that the interpreter would have here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


if __name__ == "__main__":
    _serve(sys.argv[1:])
