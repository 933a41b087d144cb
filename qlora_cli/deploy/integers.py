"""A base in integers whose codes a merge leaves as they are: a QA-LoRA update moves the offsets of their groups alone.

QA-LoRA (Xu et al. 2023, arXiv:2309.14717) gives all weights of a group the same addition. Codes and scales of the
merged model are the base's, byte for byte; its offsets are float32.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from qlora_cli.deploy.checkpoint import Checkpoint, open_checkpoint
from qlora_cli.deploy.checkpoint_map import CheckpointMap
from qlora_cli.deploy.written_weights import WrittenWeights
from qlora_cli.model.fingerprint import base_folder
from qlora_cli.model.integer.making import in_integers
from qlora_cli.model.prequantized import stored_in
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.recipe.stored_weights import stored_section
from qlora_cli.run.files import read_json_object

QA_LORA = "QA-LoRA"
PARTS = ("codes", "scales", "offsets")
"""What stands in the place of a weight."""


@dataclass(frozen=True)
class IntegerSettings:
    """How a folder stores its integers."""

    bits: int
    group_size: int
    """Columns that share a scale and an offset."""


def integer_settings(folder: Path) -> IntegerSettings:
    """What the config.json of a folder in integers says of them."""
    config = read_json_object(folder / "config.json", hint="merge that model again")
    section = stored_section(config)
    return IntegerSettings(section["bits"], section["group_size"])


def is_in_integers(folder: Path) -> bool:
    """Whether the weights of a model folder are our integers."""
    stored = stored_in(folder)
    return stored is not None and stored.is_in_integers


def stored_model(source: TunedSource) -> ModelSection:
    """The base whose weights training saw: itself, or the base in integers that was made of it.

    The latter lies in the run's folder, or in the cache where other runs may share it.
    """
    folder = source.integers_folder
    return source.model if folder is None else in_integers(source.model, folder)


def stored_folder(source: TunedSource) -> Path:
    """Folder of `stored_model`."""
    return base_folder(stored_model(source))


def can_keep_codes(source: TunedSource) -> bool:
    """Whether the update fits into the offsets of the base: a QA-LoRA adapter on a base in our integers."""
    is_of_groups = source.kind is not None and source.kind.variant == QA_LORA
    return is_of_groups and is_in_integers(stored_folder(source))


def map_of_codes(skeleton: PreTrainedModel, plain: Checkpoint, stored: Checkpoint) -> CheckpointMap:
    """Which tensors of a checkpoint in integers a model that holds them as they are is made of.

    Args:
        skeleton: the plain model on the meta device.
        plain: the checkpoint with plain weights in the place of integers.
        stored: the same checkpoint as it is stored.
    """
    model = copy.deepcopy(skeleton)
    for name, origin in CheckpointMap(skeleton, plain).origins.items():
        key = origin.keys[0]
        if key not in plain.packed:
            continue
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        module, key = nn.Module(), key.removesuffix("weight")
        for part in PARTS:
            tensor = stored.tensors[f"{key}{part}"]
            module.register_buffer(part, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))
        module.bias = model.get_submodule(f"{parent}.{child}").bias
        setattr(model.get_submodule(parent), child, module)
    return CheckpointMap(model, stored)


def dtypes_of_offsets(plain: Checkpoint) -> dict[str, torch.dtype]:
    """The types that the offsets get in a merge, by their keys: an update may be smaller than float16 can add."""
    return {f"{key.removesuffix('weight')}{PARTS[-1]}": torch.float32 for key in plain.packed}


def folded_in_16_bit(folder: Path, weights: WrittenWeights) -> list[str]:
    """Keys of plain tensors, of layers that are not in integers, whose sum with an update was rounded to 16 bit.

    Args:
        folder: the merged model.
        weights: what was written there.
    """
    with open_checkpoint(folder) as checkpoint:
        return [
            key
            for key in weights.folded
            if not key.endswith(f".{PARTS[-1]}") and checkpoint.tensors[key].dtype is not torch.float32
        ]


def num_weights(plain: Checkpoint) -> int:
    """Numbers in all tensors of a checkpoint, one for each code."""
    return sum(math.prod(tensor.shape) for tensor in plain.tensors.values())
