"""Two names that change places atomically."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

RENAME_EXCHANGE = 2
AT_FDCWD = -100


def exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically, so that there is no moment without either; False where the system cannot do it.

    `renameat2` came with Linux 3.15 and glibc 2.28; NFS and some other file systems do not offer the exchange.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    while rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), str(one), None, str(other))
    return True
