"""The weights of a model folder as they lie on disk: names, types and places, read in rows without loading a file.

A tensor of any shape is taken for rows of its last dimension; one of one dimension is a single row.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qlora_cli.deploy.scratch import Scratch
from qlora_cli.errors import IdentityError
from qlora_cli.model.fingerprint import has_only_pickles, weight_files
from qlora_cli.model.packed_weights import EightBit, FourBit, IntegerGroups, Packed, packed_weights
from qlora_cli.model.prequantized import stored_in
from qlora_cli.model.stored_dtypes import DTYPES

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    key: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    @property
    def num_columns(self) -> int:
        """Numbers in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def num_rows(self) -> int:
        """Rows of its last dimension."""
        return math.prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Checkpoint:
    """All tensors of a model folder."""

    folder: Path
    files: list[Path]
    tensors: dict[str, StoredTensor]
    """By key, in the order of the files and of their bytes."""

    pickled: dict[str, torch.Tensor] | None = None
    """Tensors of `.bin` files, which torch maps into memory."""

    packed: dict[str, Packed] = field(default_factory=dict)
    """Tensors that the files hold packed, in 4 bit or 8; here they are as they were before."""

    metadata: dict[Path, dict[str, str]] = field(default_factory=dict)
    """Text values in the headers of safetensors files."""

    _descriptors: dict[Path, int] = field(default_factory=dict)

    def read_rows(
        self, key: str, start: int = 0, stop: int | None = None, scratch: Scratch | None = None
    ) -> torch.Tensor:
        """Rows of a tensor, [stop - start, its last dimension], in the dtype on disk.

        Args:
            key: of the tensor.
            start: first row.
            stop: end of the rows; None for all.
            scratch: memory to read into, for "rows"; of its own when None.

        Raises:
            IdentityError: if the file ends early.
        """
        tensor = self.tensors[key]
        stop = tensor.num_rows if stop is None else stop
        if key in self.packed:
            return _plain_rows(self.packed[key], start, stop)
        if self.pickled is not None:
            return self.pickled[key].reshape(tensor.num_rows, tensor.num_columns)[start:stop]
        row_bytes = tensor.num_columns * tensor.dtype.itemsize
        buffer = (scratch or Scratch()).take("rows", [(stop - start) * row_bytes], torch.uint8)
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]
        offset = tensor.offset + start * row_bytes
        while view:
            num_read = os.preadv(self._descriptors[tensor.file], [view], offset)
            if num_read == 0:
                raise IdentityError("ends early", place=str(tensor.file), hint="download the base model again")
            view, offset = view[num_read:], offset + num_read
        return buffer.view(tensor.dtype).view(stop - start, tensor.num_columns)

    def read(self, key: str) -> torch.Tensor:
        """A whole tensor in its own shape."""
        return self.read_rows(key).view(self.tensors[key].shape)

    def is_as_trained(self, key: str) -> bool:
        """Whether a tensor already has the values that a quantized base computes with: it is trained on as stored."""
        return isinstance(self.packed.get(key), FourBit | EightBit | IntegerGroups)

    def descriptor(self, file: Path) -> int:
        """Of an open file."""
        return self._descriptors[file]


@contextmanager
def open_checkpoint(folder: Path, *, allow_pickle: bool = False, as_stored: bool = False) -> Iterator[Checkpoint]:
    """The checkpoint in a folder, its files open while the block runs.

    Args:
        folder: a model's.
        allow_pickle: take the pickled weights where there are no others.
        as_stored: packed weights are the tensors that hold them, and not the plain ones that they stand for.

    Raises:
        IdentityError: if there are no weights, or a file of them is damaged.
    """
    files = weight_files(folder, allow_pickle=allow_pickle)
    if allow_pickle and has_only_pickles(folder):
        yield _pickled(folder, files)
        return
    headers = {file: read_header(file) for file in files}
    tensors = {tensor.key: tensor for file in files for tensor in _stored_tensors(file, *headers[file])}
    metadata = {file: header.get("__metadata__") or {} for file, (header, _) in headers.items()}
    packed = {} if as_stored or stored_in(folder) is None else packed_weights(folder)
    tensors = _unpacked(tensors, packed)
    descriptors: dict[Path, int] = {}
    try:
        for file in files:
            descriptors[file] = os.open(file, os.O_RDONLY)
        yield Checkpoint(folder, files, tensors, None, packed, metadata, descriptors)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the place of the first byte after it.

    Raises:
        IdentityError: if it has none.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
    except (OSError, ValueError) as fault:
        hint = "download the base model again"
        raise IdentityError(f"is not a safetensors file: {fault}", place=str(file), hint=hint) from fault
    return header, 8 + length


def _stored_tensors(file: Path, header: dict[str, Any], start: int) -> list[StoredTensor]:
    try:
        tensors = [
            StoredTensor(key, file, DTYPES[facts["dtype"]], tuple(facts["shape"]), start + facts["data_offsets"][0])
            for key, facts in header.items()
            if key != "__metadata__"
        ]
    except (KeyError, TypeError, IndexError) as fault:
        raise IdentityError(
            f"has a tensor that this version cannot read: {fault}",
            place=str(file),
            hint="download the base model again, or convert it to bfloat16",
        ) from fault
    return sorted(tensors, key=lambda tensor: tensor.offset)


def _unpacked(tensors: dict[str, StoredTensor], packed: dict[str, Packed]) -> dict[str, StoredTensor]:
    """The tensors with plain ones in the place of packed ones, in the type that most plain tensors have."""
    owners = {name: weight for weight in packed.values() for name in weight.stored_names}
    types = Counter(tensor.dtype for key, tensor in tensors.items() if key not in owners and tensor.dtype in FLOATS)
    dtype = types.most_common(1)[0][0] if types else torch.bfloat16
    plain: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        if key not in owners:
            plain[key] = tensor
        elif (weight := owners[key]).name not in plain:
            plain[weight.name] = StoredTensor(weight.name, tensor.file, dtype, tuple(weight.shape), 0)
    return plain


def _plain_rows(weight: Packed, start: int, stop: int) -> torch.Tensor:
    """Rows of its last dimension; a packed weight counts those of its first."""
    inner = math.prod(weight.shape[1:-1])
    first = start // inner
    rows = weight.rows(first, -(-stop // inner)).reshape(-1, weight.shape[-1])
    return rows[start - first * inner : stop - first * inner]


def _pickled(folder: Path, files: list[Path]) -> Checkpoint:
    tensors: dict[str, StoredTensor] = {}
    values: dict[str, torch.Tensor] = {}
    for file in files:
        for key, value in torch.load(file, map_location="cpu", mmap=True, weights_only=True).items():
            values[key] = value
            tensors[key] = StoredTensor(key, file, value.dtype, tuple(value.shape), 0)
    return Checkpoint(folder, files, tensors, values)
