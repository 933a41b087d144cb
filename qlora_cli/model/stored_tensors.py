"""The tensors of a folder of safetensors, whichever files they lie in."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from qlora_cli.model.fingerprint import weight_files


class StoredTensors:
    """The tensors of a model folder by name, read in slices."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        self._names: dict[Path, list[str]] = {}
        for path in weight_files(folder):
            file = safe_open(path, framework="pt").__enter__()
            self._names[path] = list(file.keys())
            self._files |= dict.fromkeys(self._names[path], file)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._files)

    def names_in(self, path: Path) -> list[str]:
        """Names of the tensors in one of the folder's files."""
        return self._names[path]

    def whole(self, name: str) -> torch.Tensor:
        """A whole tensor, for the small ones."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor

    def part(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` of a tensor."""
        tensor: torch.Tensor = self._files[name].get_slice(name)[start:stop]
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; nothing of its content is read."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def num_bytes(self, name: str) -> int:
        """Bytes of a tensor; one row of it is read."""
        shape = self.shape(name)
        part = self.part(name, 0, 1) if shape else self.whole(name)
        return prod(shape) * part.element_size()
