"""A model folder written file by file, as the folder that it is made of: the same files, with other tensors in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

from qlora_cli.cache_folder import CACHE_ELSEWHERE, cache_folder
from qlora_cli.model.fingerprint import weight_files
from qlora_cli.model.packed_weights import StoredTensors
from qlora_cli.run.disk_errors import refuse_full_disk
from qlora_cli.run.files import write_json

SINGLE = "model.safetensors"


def stored_bytes(tensors: StoredTensors, name: str) -> int:
    """Bytes of a tensor in a base's files; one row of it is read."""
    shape = tensors.shape(name)
    part = tensors.part(name, 0, 1) if shape else tensors.whole(name)
    return prod(shape) * part.element_size()


def refuse_without_room(out: Path, num_bytes: int) -> None:
    """Refuse a base in integers that the disk does not hold.

    Args:
        out: where to; it, or the folder that it will be in, is there.
        num_bytes: of the base.

    Raises:
        ResourceError: with the sizes.
    """
    hint = f"make room, {CACHE_ELSEWHERE}" if out.is_relative_to(cache_folder("")) else "make room"
    refuse_full_disk(out, num_bytes, what="the base in integers takes", hint=hint)


def write_shards(base: Path, out: Path, tensors_of: Callable[[Path], Iterable[tuple[str, torch.Tensor]]]) -> None:
    """Write the weights, and their index where there are several files; one file is in memory at a time.

    Args:
        base: folder that the files are those of.
        out: where to.
        tensors_of: names and tensors that take the place of those in one of the files.
    """
    places: dict[str, str] = {}
    for path in weight_files(base):
        tensors = dict(tensors_of(path))
        save_file(tensors, out / path.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, path.name)
    if len(set(places.values())) > 1:
        write_json(out / f"{SINGLE}.index.json", {"metadata": {}, "weight_map": places})
