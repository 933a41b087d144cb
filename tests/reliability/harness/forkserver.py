"""Processes that start in milliseconds: one process loads the libraries once, and all others are forked from it.

    with ForkServer("tests.reliability.harness.saves") as server:
        child = server.start("tests.reliability.harness.saves:save", {"run": "runs/a", "step": 6}, log=path)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL

The first server that is asked for starts the origin, which imports what takes seconds and listens on a socket. Each
connection is a server of its own, forked from the origin; it imports what else its children need and forks them:

    pytest worker ── socket ── server ── child
    pytest worker ── socket ── server ── child
                                 └ both forked from the origin, which all workers of a session share

A child is an ordinary process of one thread that has done nothing yet; it calls one function and exits with the
number that this returns. Origin and servers fork and wait and never compute anything, so no thread pool is lost.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_cli.garbage import collector_off

ROOT = Path(__file__).resolve().parents[3]

LIBRARIES = (
    "qlora_cli.train.session",
    "qlora_cli.cli.app",
    "qlora_cli.deploy.export",
    "qlora_cli.evaluate.request",
    "transformers.models.llama.modeling_llama",
    "pytest",
)
"""Modules that the origin imports: all heavy libraries, what tests' bases are made of and tests import."""

HEAVY, LIGHT = "origin", "light-origin"
"""Names of the sockets of the origin with the libraries and of the one without."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Variables that leave the other cores to other processes."""

FOLDER_VARIABLE = "QLORA_TESTS_FOLDER"
"""Names the folder that all workers of a test session share; `tests/conftest.py` sets it."""

CRASHED = 70
"""Exit code of a child whose function raised; the traceback is in its log."""

PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = -1


class ForkServer:
    """A server process; one child at a time.

    Args:
        modules: imported before the first fork, beside `LIBRARIES`.
        is_light: for children that need no heavy library: a small process is forked sooner, and ends sooner.
    """

    def __init__(self, *modules: str, is_light: bool = False) -> None:
        self._connection = _connection(LIGHT if is_light else HEAVY)
        self._file = self._connection.makefile("rw", encoding="utf-8")
        self._write({"modules": modules, "environment": os.environ | ONE_THREAD})

    def __enter__(self) -> ForkServer:
        assert self._read() == {"ready": True}
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.shutdown(socket.SHUT_WR)
        self._file.read()  # until the server has ended
        self._file.close()
        self._connection.close()

    def start(self, function: str, arguments: dict[str, Any], *, log: Path, is_held: bool = False) -> Child:
        """Fork a child.

        Args:
            function: `module:name`, called with `arguments`, which JSON must hold; it returns the exit code.
            log: takes what the child prints and its traceback.
            is_held: the child stops itself before it calls the function, until it gets SIGCONT.
        """
        self._write({"function": function, "arguments": arguments, "log": str(log), "is_held": is_held})
        pid = self._read()["pid"]
        if is_held:
            assert self._read() == {"held": True}
        return Child(pid, self)

    def run(self, function: str, arguments: dict[str, Any], *, log: Path) -> int:
        """Fork a child and wait for its exit code."""
        return self.start(function, arguments, log=log).wait()

    def _write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def _read(self) -> dict[str, Any]:
        line = self._file.readline()
        assert line, "the fork server has died"
        return json.loads(line)


def _connection(name: str) -> socket.socket:
    """A connection to an origin, which is started if there is none; where two workers ask, one starts it."""
    address = Path(os.environ[FOLDER_VARIABLE]) / name
    with address.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return _connected(address)
        _start_origin(address)
        return _connected(address)


def _connected(address: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(address))
    except OSError:
        connection.close()
        raise
    return connection


def _start_origin(address: Path) -> None:
    """Start it and wait until it listens; it ends with this process."""
    address.unlink(missing_ok=True)
    origin = subprocess.Popen(
        [sys.executable, "-m", __name__, str(address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | ONE_THREAD,
    )
    assert origin.stdin
    assert origin.stdout
    assert origin.stdout.readline() == b"listening\n"
    atexit.register(origin.wait, timeout=30)
    atexit.register(origin.stdin.close)


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


def _be_the_origin(address: str) -> None:
    """Fork a server for each connection, until the process that started this one has ended."""
    if Path(address).name == HEAVY:
        with collector_off():
            for module in LIBRARIES:
                importlib.import_module(module)
            _ask_once()
    gc.freeze()  # a collection in a child would otherwise copy every page
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("listening", flush=True)
        while True:
            ready, _, _ = select.select([sys.stdin, listener], [], [])
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _serve(connection)
            connection.close()


def _ask_once() -> None:
    """Ask what every process asks once and keeps, so that each child has the answers: a tenth of a small run."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from qlora_cli import upstream
    from qlora_cli.data import cache
    from qlora_cli.plan import trace_cache
    from qlora_cli.run import manifest
    from qlora_cli.upstream_row import Road

    get_checkpoint_conversion_mapping("llama")  # compiles the patterns of all architectures
    cache.library_versions()
    manifest.library_versions()
    trace_cache.code_fingerprint()
    for road in (Road.TRAINING, Road.TEMPLATES, Road.BASE, Road.QUANTIZED, Road.MERGE, Road.PLAN):
        upstream.check(road)


def _serve(connection: socket.socket) -> None:
    """In a server; never returns."""
    try:
        file = connection.makefile("rw", encoding="utf-8")

        def answer(value: dict[str, Any]) -> None:
            file.write(json.dumps(value) + "\n")
            file.flush()

        asked = json.loads(file.readline())
        os.environ.clear()
        os.environ.update(asked["environment"])
        for module in asked["modules"]:
            importlib.import_module(module)
        gc.freeze()
        answer({"ready": True})
        for line in iter(file.readline, ""):
            asked = json.loads(line)
            importlib.import_module(asked["function"].partition(":")[0])  # once, not in each child
            pid = os.fork()
            if pid == 0:
                os.close(connection.detach())
                _work(asked)
            answer({"pid": pid})
            _, status = os.waitpid(pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                answer({"held": True})
                _, status = os.waitpid(pid, 0)
            answer({"exit_code": os.waitstatus_to_exitcode(status)})
    except BaseException:  # noqa: BLE001 - the frame that the interpreter would have here
        traceback.print_exc()
    os._exit(0)


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
    _be_the_origin(sys.argv[1])
