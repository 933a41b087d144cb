"""Holder of a run directory, the process that writes to it, by the lock: a process that died holds nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os

from qlora_cli.run.directory import RunDirectory

UNKNOWN = "unknown"


def holder_of(run: RunDirectory) -> str | None:
    """Id of the process that writes there; None where nobody does.

    The lock is asked for and given back immediately; whoever claims the directory at that moment tries again.
    """
    try:
        lock = os.open(run.lock_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # none was ever made, or it is not ours to read
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(OSError):
            text = os.read(lock, 32).decode("ascii", "replace").strip()
            return text if text.isdecimal() else UNKNOWN
        return UNKNOWN
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(lock)
    return None
