"""The files of a merged checkpoint: those of the base, with the same tensors in the same places."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from qlora_cli.deploy.checkpoint import Checkpoint, StoredTensor
from qlora_cli.deploy.scratch import Scratch
from qlora_cli.deploy.weights_file import NewTensor, WeightsFile
from qlora_cli.model.device import DTYPES, dtype_name

NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types of tensors that `--dtype` converts; all others are codes of something."""


class MergedLayout:
    """Where each tensor of the merged checkpoint goes."""

    def __init__(
        self,
        base: Checkpoint,
        folder: Path,
        dtype: torch.dtype | None,
        beside: dict[str, NewTensor] | None = None,
        shapes: dict[str, tuple[int, ...]] | None = None,
        dtypes: dict[str, torch.dtype] | None = None,
    ) -> None:
        """Lay out all files.

        Args:
            base: whose names, order, shapes and files are taken over; `.bin` files become safetensors.
            folder: where the files will be.
            dtype: of all floating tensors; None keeps the base's.
            beside: tensors that the base does not have, by the key that each is put behind.
            shapes: of tensors that have another than in the base, by their keys.
            dtypes: the same of types.
        """
        self.base = base
        self.tensors: dict[str, NewTensor] = {}
        self.scratch = Scratch()
        self._folder, self._dtype = folder, dtype
        self._beside, self._shapes, self._dtypes = beside or {}, shapes or {}, dtypes or {}
        self._file_of: dict[str, WeightsFile] = {}
        self.files = [self._laid_out(file) for file in base.files]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.num_bytes // tensor.dtype.itemsize for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """Type of most of the numbers."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            if tensor.dtype in DTYPES.values():
                sizes[tensor.dtype] += tensor.num_bytes
        return dtype_name(sizes.most_common(1)[0][0]) if sizes else "float32"

    def write(self, key: str, values: torch.Tensor, first: int = 0) -> None:
        """Write numbers of a tensor from its number `first` on, rounded to its type."""
        dtype = self.tensors[key].dtype
        if values.dtype != dtype:
            values = self.scratch.take("rounded", values.shape, dtype).copy_(values)
        self._file_of[key].write(key, values, first)

    def flush(self) -> None:
        """Have the disk take what has been written so far."""
        for file in self.files:
            file.flush()

    def is_copied(self, tensor: StoredTensor) -> bool:
        """Whether a tensor that does not change is the same bytes in the new file."""
        is_plain = self.base.pickled is None and tensor.key not in self.base.packed
        return is_plain and self.tensors[tensor.key].dtype == tensor.dtype

    def copy(self, run: list[StoredTensor]) -> int:
        """Copy tensors that lie side by side; returns the bytes."""
        first, num_bytes = run[0], sum(tensor.num_bytes for tensor in run)
        self._file_of[first.key].copy(first.key, self.base.descriptor(first.file), first.offset, num_bytes)
        return num_bytes

    def runs(self, changed: set[str]) -> Iterator[list[StoredTensor]]:
        """Tensors that do not change, those together that lie side by side in the old file and in the new one."""
        run: list[StoredTensor] = []
        for tensor in self.base.tensors.values():
            if tensor.key in changed:
                continue
            if run and not self._follows(run[-1], tensor):
                yield run
                run = []
            run.append(tensor)
        if run:
            yield run

    def write_index(self) -> None:
        """The index of the files, where the base has one: its own, unless a tensor has another name, type or size."""
        name = "model.safetensors.index.json"
        old = self.base.folder / (name if self.base.pickled is None else "pytorch_model.bin.index.json")
        if not old.is_file():
            return
        is_same = all(
            key in self.base.tensors
            and key not in self.base.packed
            and (tensor.dtype, tensor.shape) == (self.base.tensors[key].dtype, self.base.tensors[key].shape)
            for key, tensor in self.tensors.items()
        )
        if is_same and old.name == name:
            shutil.copyfile(old, self._folder / name)
            return
        metadata = json.loads(old.read_text(encoding="utf-8")).get("metadata")
        sizes = [tensor.num_bytes for tensor in self.tensors.values()]
        content = {
            "metadata": (metadata if isinstance(metadata, dict) else {}) | {"total_size": sum(sizes)},
            "weight_map": {key: self._file_of[key].path.name for key in sorted(self.tensors)},
        }
        (self._folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _laid_out(self, file: Path) -> WeightsFile:
        tensors = []
        for old in self.base.tensors.values():
            if old.file == file:
                is_number = old.dtype in NUMBERS
                dtype = self._dtype if self._dtype is not None and is_number else old.dtype
                tensors.append(
                    NewTensor(old.key, self._dtypes.get(old.key, dtype), self._shapes.get(old.key, old.shape))
                )
                tensors += [self._beside[old.key]] if old.key in self._beside else []
        metadata = self.base.metadata.get(file, {"format": "pt"})  # pickled files have none
        laid_out = WeightsFile(self._folder / _safe_name(file.name), tensors, metadata)
        for tensor in tensors:
            self._file_of[tensor.key], self.tensors[tensor.key] = laid_out, tensor
        return laid_out

    def _follows(self, before: StoredTensor, tensor: StoredTensor) -> bool:
        if before.file != tensor.file or not (self.is_copied(before) and self.is_copied(tensor)):
            return False
        offsets = self._file_of[tensor.key].offsets
        distance = tensor.offset - before.offset
        return distance == before.num_bytes and distance == offsets[tensor.key] - offsets[before.key]


def _safe_name(name: str) -> str:
    """
    >>> _safe_name("pytorch_model-00001-of-00002.bin")
    'model-00001-of-00002.safetensors'
    """
    return name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
