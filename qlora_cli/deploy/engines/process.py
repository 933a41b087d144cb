"""Programs that run in a process of their own, in another Python where need be: what they say goes into a log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from qlora_cli.engine_environment import NOT_INHERITED
from qlora_cli.secrets import redacted

LONGEST_LAST_WORDS = 300

UNTIL_WE_END = '{ read -r word < "/dev/fd/$0" || kill -s KILL 0; } & exec "$@"'
"""A shell that becomes a command, and kills it and all of its group where a pipe is closed before a line came.

Who holds the other end of the pipe cannot do so itself after `kill -9`.
"""


def run_logged(
    command: Sequence[str | Path], log: Path, *, variables: Mapping[str, str] | None = None, held: Sequence[int] = ()
) -> int:
    """Run a command to its end and return its exit code; what it prints is added to `log`.

    It has a session of its own: when this process is interrupted or killed, the command is killed with all that it
    started.

    Args:
        command: program and arguments.
        log: file that is added to.
        variables: added to those of this process.
        held: descriptors that stay open in it, such as a lock that must not be free before it ends.
    """
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    environment |= variables or {}
    reading, writing = os.pipe()
    with log.open("ab") as file, open(writing, "wb", buffering=0) as life:
        process = subprocess.Popen(
            ["sh", "-c", UNTIL_WE_END, str(reading), *(os.fspath(word) for word in command)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=(reading, *held),
        )
        os.close(reading)
        try:
            code = process.wait()
            with suppress(BrokenPipeError):
                life.write(b"it has ended\n")
            return code
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def last_words(log: Path) -> str:
    """The line of a log that says best why a program ended: the last that names an error, else the last at all."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search("error|assert", line, re.IGNORECASE)]
    words = redacted((errors or lines or ["it said nothing"])[-1])
    return words if len(words) <= LONGEST_LAST_WORDS else words[:LONGEST_LAST_WORDS] + "..."
