"""The format of compressed-tensors, which vLLM and transformers read: linear layers in 4 or 8 bits, all else as it is.

`w4a16` and `w8a16` hold packed integers and compute in 16 bit; `w8a8` rounds the activations too, token by token, as
they come. Weights are rounded to nearest; the layout is that of compressed-tensors 0.20.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qlora_cli import console
from qlora_cli.deploy.checkpoint import Checkpoint, open_checkpoint
from qlora_cli.deploy.engines.engine import Engine
from qlora_cli.deploy.engines.install import engine_version
from qlora_cli.deploy.engines.script_call import SCRIPTS, ask_script
from qlora_cli.deploy.formats.format import Format, FormatOptions, WriteJob
from qlora_cli.deploy.formats.linear_weights import WEIGHT, LinearWeights, linear_weights
from qlora_cli.deploy.formats.rounding import PER_WORD, pack, quantize_rows
from qlora_cli.deploy.weights_file import INDEX, NewTensor, WeightsFile
from qlora_cli.engine_environment import COMPRESSED_TENSORS
from qlora_cli.errors import ArgumentError
from qlora_cli.model.other_files import copy_other_files
from qlora_cli.model.tuned import TunedSource
from qlora_cli.progress import progress
from qlora_cli.run.disk_errors import refuse_full_disk

CHUNK_NUMBERS = 4 * 2**20
"""Weights that are rounded at once; the search holds some five float32 copies of them."""


@dataclass(frozen=True)
class Scheme:
    """How the weights are stored, and what is done with activations."""

    num_bits: int
    groups: tuple[int | None, ...]
    """Weights that may share a scale, the usual one first; None for a whole row."""

    layout: str = "pack-quantized"
    """compressed-tensors' name of it."""

    has_rounded_activations: bool = False

    @property
    def multiple(self) -> int:
        """Number of columns that fill a word; more than that is a matter of the group."""
        return 1 if self.layout == "int-quantized" else PER_WORD // self.num_bits


SCHEMES = {
    "w4a16": Scheme(4, (128, 64, 32)),
    "w8a16": Scheme(8, (None, 128, 64, 32)),
    "w8a8": Scheme(8, (None,), "int-quantized", has_rounded_activations=True),
}
USUAL = "w4a16"


def scheme_of(options: FormatOptions) -> tuple[Scheme, int | None]:
    """The scheme and the group that options ask for.

    Raises:
        ArgumentError: if the scheme has no such group.
    """
    name = options.quant or USUAL
    scheme = SCHEMES[name]
    if options.group_size is None:
        return scheme, scheme.groups[0]
    if options.group_size not in scheme.groups:
        sizes = [str(size) for size in scheme.groups if size is not None]
        known = f"use --group-size {' or '.join(sizes)}" if sizes else "leave --group-size out: a row has one scale"
        raise ArgumentError(f"--group-size {options.group_size} does not go with {name}", hint=known)
    return scheme, options.group_size


def check(_: TunedSource, options: FormatOptions) -> None:
    """Refuse what the scheme does not have, before anything is merged."""
    scheme_of(options)


def write(job: WriteJob) -> None:
    """Write the model, tensor by tensor; files, their number and the order of tensors stay.

    Raises:
        ArgumentError: if an option does not fit, or the model has no layer that the format can hold.
        ResourceError: if the disk has no room.
    """
    scheme, group = scheme_of(job.options)
    copy_other_files(job.plain, job.out)
    trust = job.source.model.trust_remote_code
    with open_checkpoint(job.plain) as checkpoint:
        multiple = group or scheme.multiple
        linear = linear_weights(checkpoint, job.plain, multiple=multiple, trust_code=trust)
        if linear.not_divisible:
            console.warn(
                f"{len(linear.not_divisible)} layers stay in 16 bit, their columns are no multiple of {multiple}: "
                f"{', '.join(linear.not_divisible[:3])}"
            )
        _write_weights(checkpoint, job.out, linear, scheme, group)
    _write_config(job.out, linear, scheme, group)


def _new_tensors(checkpoint: Checkpoint, key: str, scheme: Scheme, group: int | None) -> list[NewTensor]:
    """What stands in the place of a weight."""
    old, name = checkpoint.tensors[key], key.removesuffix(WEIGHT)
    num_rows, num_columns = old.shape
    scale = NewTensor(f"{name}.weight_scale", old.dtype, (num_rows, num_columns // group if group else 1))
    if scheme.layout == "int-quantized":
        return [NewTensor(key, torch.int8, old.shape), scale]
    packed = NewTensor(f"{name}.weight_packed", torch.int32, (num_rows, num_columns * scheme.num_bits // PER_WORD))
    return [packed, scale, NewTensor(f"{name}.weight_shape", torch.int64, (2,))]


def _write_weights(checkpoint: Checkpoint, out: Path, linear: LinearWeights, scheme: Scheme, group: int | None) -> None:
    chosen = set(linear.chosen)
    files: list[WeightsFile] = []
    places: dict[str, WeightsFile] = {}
    for file in checkpoint.files:
        tensors = []
        for key, old in checkpoint.tensors.items():
            if old.file == file:
                is_chosen = key in chosen
                kept = [NewTensor(key, old.dtype, old.shape)]
                tensors += _new_tensors(checkpoint, key, scheme, group) if is_chosen else kept
        files.append(WeightsFile(out / file.name, tensors, checkpoint.metadata.get(file, {"format": "pt"})))
        places |= {tensor.key: files[-1] for tensor in tensors}
    refuse_full_disk(out, sum(file.num_bytes for file in files))
    with ExitStack() as stack, progress("writing the weights", len(checkpoint.tensors)) as phase:
        for laid_out in files:
            stack.enter_context(laid_out.opened())
        for key, old in checkpoint.tensors.items():
            if key in chosen:
                _write_rounded(checkpoint, key, scheme, group, lambda key, *rest: places[key].write(key, *rest))
            else:
                places[key].copy(key, checkpoint.descriptor(old.file), old.offset, old.num_bytes)
            phase.advance()
    if (checkpoint.folder / INDEX).is_file():
        _write_index(out, {key: file.path.name for key, file in places.items()}, files)


def _write_rounded(
    checkpoint: Checkpoint, key: str, scheme: Scheme, group: int | None, write: Callable[..., None]
) -> None:
    """Round one weight in chunks of rows."""
    old, name = checkpoint.tensors[key], key.removesuffix(WEIGHT)
    num_rows, num_columns = old.shape
    step = max(1, CHUNK_NUMBERS // num_columns)
    for start in range(0, num_rows, step):
        rows = checkpoint.read_rows(key, start, min(start + step, num_rows))
        codes, scales = quantize_rows(rows, scheme.num_bits, group, old.dtype)
        if scheme.layout == "int-quantized":
            write(key, codes, start * num_columns)
        else:
            packed = pack(codes, scheme.num_bits)
            write(f"{name}.weight_packed", packed, start * packed.shape[1])
        write(f"{name}.weight_scale", scales, start * scales.shape[1])
    if scheme.layout != "int-quantized":
        write(f"{name}.weight_shape", torch.tensor(old.shape, dtype=torch.int64))


def _write_index(out: Path, weight_map: dict[str, str], files: list[WeightsFile]) -> None:
    content = {
        "metadata": {"total_size": sum(file.num_bytes for file in files)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (out / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_config(out: Path, linear: LinearWeights, scheme: Scheme, group: int | None) -> None:
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    weights: dict[str, Any] = {
        "num_bits": scheme.num_bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group else "channel",
        "group_size": group,
        "dynamic": False,
    }
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": scheme.layout,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": activations if scheme.has_rounded_activations else None,
                "output_activations": None,
            }
        },
        "ignore": list(linear.left),
    }
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


ENGINE = Engine(
    "transformers with compressed-tensors",
    COMPRESSED_TENSORS.install,
    partial(engine_version, COMPRESSED_TENSORS),
    partial(ask_script, COMPRESSED_TENSORS, SCRIPTS / "transformers_ask.py"),
)
FORMAT = Format(
    write,
    ENGINE,
    quants=tuple(SCHEMES),
    check=check,
    smallest_first=("w4a16", "w8a16"),
    larger=("w8a16",),
    group_sizes=(128, 64, 32),
)
