"""Writes a base in integers: each linear weight as its integers are decided, one at a time, and all else as it is.

What others have stored in integers is taken over without rounding (`model/integer/taking_over.py`).

The folder is an ordinary one that `transformers` reads with our quantizer (`model/integer/quantizer.py`). For each
linear layer it has, in the place of `weight` [O, I]:

    codes    uint8 [O, I * bits / 8]   see `codes.py`
    scales   float16 [O, G]; float32 where those of others do not fit
    offsets  float16 [O, G]; float32 as scales, and in a merged model, where an update is added to them

Shape letters: O = output features, I = input features, G = groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from qlora_cli.errors import RecipeError
from qlora_cli.model.fingerprint import base_folder, has_only_pickles
from qlora_cli.model.integer.bytes_of import FLOAT16_BYTES, integer_bytes
from qlora_cli.model.integer.layers import LayerChoice, layers_to_round, weight_keys
from qlora_cli.model.integer.quantizer import IntegerConfig
from qlora_cli.model.integer.shards import refuse_without_room, stored_bytes, write_shards
from qlora_cli.model.integer.taking_over import take_over
from qlora_cli.model.other_files import copy_other_files
from qlora_cli.model.own_code import refuse_code_from_elsewhere
from qlora_cli.model.packed_weights import StoredTensors, packed_weights
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import ModelSection, QuantizationSection

Parts = dict[str, torch.Tensor]
"""`codes`, `scales` and `offsets` of one weight, as they are stored."""


@dataclass(frozen=True)
class PlainBase:
    """A base whose linear weights are to be rounded."""

    folder: Path
    choice: LayerChoice
    tensors: PlainTensors
    layers: dict[str, str]
    """The layers to round, by the names of their weights in the files."""


def plain_base(model: ModelSection, quantization: QuantizationSection, out: Path) -> PlainBase:
    """The base, if it can be written in integers; looked at before anything else takes its time.

    Args:
        model: the plain base.
        quantization: bits, groups, and what stays plain.
        out: where to; it, or the folder that it will be in, is there.

    Raises:
        RecipeError: if a linear layer cannot be divided, or the files do not have its weight, or are pickled.
        ResourceError: if the disk has no room.
    """
    folder = base_folder(model, whole=True)
    if has_only_pickles(folder):
        raise RecipeError(
            f"quantization.method: int needs safetensors, and the weights of '{model.base_model}' are pickled",
            hint="convert the base model to safetensors, or --set quantization.method=bitsandbytes",
        )
    choice = layers_to_round(model, quantization, _config_of(model, folder))
    tensors = PlainTensors(folder)
    layers = weight_keys(choice, tensors.names, model.base_model)
    refuse_without_room(out, tensors.num_bytes(set(layers), quantization))
    return PlainBase(folder, choice, tensors, layers)


def write_integers(
    out: Path,
    base: PlainBase,
    quantization: QuantizationSection,
    parts_of: Callable[[str, torch.Tensor], Parts],
    title: str,
) -> None:
    """Write the base into an empty folder, each linear weight in integers and all else as it is.

    Args:
        out: where to.
        base: the plain one.
        quantization: bits and groups.
        parts_of: takes a layer's name and its weight [O, I].
        title: of the progress.
    """
    with progress(title, len(base.layers)) as phase:

        def tensors_of(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
            for key in base.tensors.in_file(path):
                value = base.tensors.read(key)
                if key not in base.layers:
                    yield key, value
                    continue
                for part, tensor in parts_of(base.layers[key], value).items():
                    yield f"{key.removesuffix('weight')}{part}", tensor.cpu()
                phase.advance()

        write_shards(base.folder, out, tensors_of)
    _write_other_files(base.folder, out, quantization, base.choice.kept)


def write_taken_over(out: Path, model: ModelSection, quantization: QuantizationSection) -> None:
    """Write a base that others have stored in integers into an empty folder, as `take_over` does.

    Raises:
        RecipeError, ResourceError: as `take_over`.
    """
    base = base_folder(model, whole=True)
    kept = take_over(model, base, _config_of(model, base), out)
    _write_other_files(base, out, quantization, kept)


def _config_of(model: ModelSection, base: Path) -> PreTrainedConfig:
    if model.trust_remote_code:
        refuse_code_from_elsewhere(model.base_model, PreTrainedConfig.get_config_dict(base)[0])
    return AutoConfig.from_pretrained(base, trust_remote_code=model.trust_remote_code)


def _write_other_files(base: Path, out: Path, quantization: QuantizationSection, kept: Iterable[str]) -> None:
    """All that lies beside the weights, and in config.json how they are stored."""
    copy_other_files(base, out)
    config = json.loads((out / "config.json").read_text("utf-8"))
    for part in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config"):
            part.pop(key, None)
    stored = IntegerConfig(
        quantization.num_bits, quantization.weights_in_group, sorted(kept), calibration=quantization.calibration
    )
    config["quantization_config"] = stored.to_dict()
    # As json writes it: some configurations hold Infinity.
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


class PlainTensors:
    """The tensors of a base by the names that they have where nothing is packed."""

    def __init__(self, folder: Path) -> None:
        self._packed = packed_weights(folder)
        self._stored = StoredTensors(folder)
        self._hidden = {name for packed in self._packed.values() for name in packed.stored_names}

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return [*self._packed, *(name for name in self._stored.names if name not in self._hidden)]

    def num_bytes(self, to_round: set[str], quantization: QuantizationSection) -> int:
        """Bytes of the folder's tensors once those of `to_round` are in integers."""
        num_weights = sum(prod(self._shape(name)) for name in to_round)
        others = (name for name in self.names if name not in to_round)
        kept = sum(self._kept_bytes(name) for name in others)
        return kept + integer_bytes(quantization, num_weights, FLOAT16_BYTES)

    def _shape(self, name: str) -> tuple[int, ...]:
        packed = self._packed.get(name)
        return self._stored.shape(name) if packed is None else packed.shape

    def _kept_bytes(self, name: str) -> int:
        packed = self._packed.get(name)
        return stored_bytes(self._stored, name) if packed is None else prod(packed.shape) * FLOAT16_BYTES

    def in_file(self, path: Path) -> Iterator[str]:
        """Names of the tensors whose first part is in a file."""
        first = {packed.stored_names[0]: name for name, packed in self._packed.items()}
        for name in self._stored.names_in(path):
            if name in first:
                yield first[name]
            elif name not in self._hidden:
                yield name

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor; one that was packed in bfloat16, which is what `transformers` makes of it."""
        packed = self._packed.get(name)
        return self._stored.whole(name) if packed is None else packed.rows(0, packed.shape[0]).bfloat16()
