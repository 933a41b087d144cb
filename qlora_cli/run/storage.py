"""What to do when the disk refuses: full, over its quota, broken, read-only, not ours."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qlora_cli.errors import ResourceError

if TYPE_CHECKING:
    from qlora_cli.run.directory import RunDirectory

REASONS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room, or ask for a larger quota"),
    errno.EFBIG: ("the file is larger than the limit", "raise the limit with `ulimit -f`"),
    errno.EIO: ("the disk reports an input/output error", "look at the disk with `dmesg`"),
    errno.EROFS: ("the file system is read-only", "mount it for writing"),
    errno.EACCES: ("writing is not permitted", "get the right to write there"),
    errno.EPERM: ("writing is not permitted", "get the right to write there"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n 4096`"),
    errno.ENFILE: ("too many files are open on this machine", "close other programs"),
    errno.ESTALE: ("the network file system has lost the file", "mount it again"),
}
"""errno -> what is wrong, what to do."""

SAFETENSORS_FAULT = re.compile(r"\(os error (\d+)\)")
"""safetensors reports what the system says as text, in an error of its own."""


@contextmanager
def storage_faults(run: RunDirectory) -> Iterator[None]:
    """Turn what the system says while files of `run` are written into an error that says how to go on.

    Raises:
        ResourceError: in place of any OSError, and of safetensors' own error where a system call is behind it.
    """
    from safetensors import SafetensorError  # only where something is written

    try:
        yield
    except OSError as fault:
        raise resource_error(run, fault) from fault
    except SafetensorError as fault:
        number = SAFETENSORS_FAULT.search(str(fault))
        if number is None:
            raise
        raise resource_error(run, OSError(int(number[1]), os.strerror(int(number[1])))) from fault


def resource_error(run: RunDirectory, fault: OSError) -> ResourceError:
    """The user's view of a fault of the disk."""
    reason, remedy = REASONS.get(fault.errno or 0, ("a file cannot be written", "mend that"))
    way_on = f"`{run.resume_command}`" if run.is_started else "start the run again"
    return ResourceError(f"{reason}: {fault}", place=str(run.path), hint=f"{remedy}, then {way_on}")
