"""Writing a safetensors file tensor by tensor, in any order and from several threads."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qlora_cli.model.stored_dtypes import NAMES_OF_DTYPES

INDEX = "model.safetensors.index.json"
"""File of a model folder that says which of several files each tensor is in."""

COPY_BYTES = 8 * 2**20
"""Copied at once where the file system cannot copy by itself."""

NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


@dataclass(frozen=True)
class NewTensor:
    """A tensor of a file to be written."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


class WeightsFile:
    """A file whose places are known before its bytes are."""

    def __init__(self, path: Path, tensors: Iterable[NewTensor], metadata: dict[str, str]) -> None:
        """Lay the tensors out in their order.

        Args:
            path: file to make.
            tensors: what it will hold.
            metadata: text values of the header.
        """
        self.path = path
        self.offsets: dict[str, int] = {}
        self._descriptor = -1
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        end = 0
        for tensor in tensors:
            self.offsets[tensor.key] = end
            name = NAMES_OF_DTYPES[tensor.dtype]
            data_offsets = [end, end := end + tensor.num_bytes]
            header[tensor.key] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": data_offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
        self._header = len(text).to_bytes(8, "little") + text
        self.num_bytes = len(self._header) + end
        self.offsets = {key: len(self._header) + offset for key, offset in self.offsets.items()}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The file is there, at its full size with its header; when the block ends it is on the disk."""
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            os.ftruncate(self._descriptor, self.num_bytes)
            _write_all(self._descriptor, memoryview(self._header), 0)
            yield
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def flush(self) -> None:
        """Wait until what has been written so far is on the disk."""
        os.fdatasync(self._descriptor)

    def write(self, key: str, values: torch.Tensor, first: int = 0) -> None:
        """Write numbers of a tensor, contiguous and in its dtype, from its number `first` on."""
        data = memoryview(values.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        _write_all(self._descriptor, data, self.offsets[key] + first * values.dtype.itemsize)

    def copy(self, key: str, source: int, offset: int, num_bytes: int) -> None:
        """Copy bytes of another file, beginning with those of a tensor; the file system does it where it can.

        Args:
            key: tensor whose place the bytes begin at.
            source: descriptor of the other file.
            offset: of the bytes in it.
            num_bytes: how many.
        """
        goal, end = self.offsets[key], offset + num_bytes
        while offset < end:
            num_copied = _copy_some(source, self._descriptor, end - offset, offset, goal)
            if num_copied == 0:
                raise OSError(errno.EIO, "the file ends early", str(self.path))
            offset, goal = offset + num_copied, goal + num_copied


def _copy_some(source: int, goal: int, num_bytes: int, offset: int, goal_offset: int) -> int:
    try:
        return os.copy_file_range(source, goal, num_bytes, offset, goal_offset)
    except AttributeError:  # macOS
        pass
    except OSError as fault:
        if fault.errno not in NO_KERNEL_COPY:
            raise
    data = os.pread(source, min(num_bytes, COPY_BYTES), offset)
    _write_all(goal, memoryview(data), goal_offset)
    return len(data)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        num_written = os.pwrite(descriptor, data, offset)
        data, offset = data[num_written:], offset + num_written
