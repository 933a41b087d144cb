"""The base in integers that a recipe asks for: made once, kept in the cache, and found again.

Shape letters: O = output features, I = input features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qlora_cli.cache_folder import CACHE_ELSEWHERE, cache_folder
from qlora_cli.model.device import pick_device
from qlora_cli.model.fingerprint import base_folder, fingerprint_base
from qlora_cli.model.integer.codes import pack
from qlora_cli.model.integer.rounding import round_to_nearest
from qlora_cli.model.integer.writing import Parts, plain_base, write_integers, write_taken_over
from qlora_cli.recipe.foreign_integers import weights_of_group
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from qlora_cli.recipe.stored_weights import stored_section, stored_weights
from qlora_cli.run.disk_errors import disk_error, naming
from qlora_cli.run.files import read_json_object
from qlora_cli.run.folders import replaced_folder
from qlora_cli.run.inventory import is_whole

VERSION = 1
"""Of the way in which weights are rounded; folders of other versions are not taken."""


def stored_base(model: ModelSection, quantization: QuantizationSection | None) -> ModelSection:
    """The base as it is loaded: of a base in integers the folder that has them, written where it is not there yet.

    Raises:
        RecipeError: if a linear layer cannot be divided into groups, or the base's files do not have its weight, or are
            pickled.
        IdentityError: if the base cannot be found.
        ResourceError: if the cache cannot be written.
    """
    if quantization is None or not quantization.is_in_integers:
        return model
    folder = base_folder(model)
    stored = stored_weights(read_json_object(folder / "config.json", hint="download the base model again"))
    if stored is not None and stored.is_in_integers:
        return model
    if quantization.is_calibrated:
        raise ValueError("a calibrated base lies in the folder of its run")
    out = integer_folder(model, quantization)
    if not is_whole(out):
        is_taken_over = stored is not None and stored.is_taken_over and not model.dequantize
        write = write_taken_over if is_taken_over else _write_rounded
        with _disk_named(out), replaced_folder(out) as stage:
            write(stage, model, quantization)
    return in_integers(model, str(out))


def _write_rounded(folder: Path, model: ModelSection, quantization: QuantizationSection) -> None:
    base, title = plain_base(model, quantization, folder), f"rounding the base to {quantization.num_bits}-bit integers"
    write_integers(folder, base, quantization, partial(nearest_parts, quantization), title)


def in_integers(model: ModelSection, folder: str) -> ModelSection:
    """The base with a folder in integers in its place."""
    changes = {"base_model": folder, "revision": None, "dequantize": False, "allow_pickle": False}
    return model.model_copy(update=changes)


def integer_folder(model: ModelSection, quantization: QuantizationSection) -> Path:
    """Where the base lies in integers: its weights and the settings decide, and not its name."""
    skipped = sorted(quantization.skip_modules)
    settings: list[Any] = [VERSION, quantization.num_bits, quantization.weights_in_group, skipped]
    section = stored_section(read_json_object(base_folder(model) / "config.json", hint="download the base model again"))
    settings += [dict(section)] if section else []  # how integers of others are to be read
    identity = hashlib.sha256(json.dumps([fingerprint_base(model), *settings]).encode()).hexdigest()
    name = f"{Path(model.base_model).name}-{quantization.kind}-g{quantization.weights_in_group}-{identity[:16]}"
    return cache_folder("bases") / name


@contextmanager
def _disk_named(out: Path) -> Iterator[None]:
    """Say of a disk that refuses that it is the cache's, which is not read as a fault of the base."""
    try:
        with naming(out.parent, CACHE_ELSEWHERE):
            yield
    except OSError as fault:
        raise disk_error(fault) or fault from fault


def nearest_parts(quantization: QuantizationSection, name: str, weight_OI: torch.Tensor) -> Parts:
    """The weight of a layer rounded to the nearest levels, whatever its name is."""
    bits, size = quantization.num_bits, weights_of_group(quantization.weights_in_group, weight_OI.shape[1])
    codes, scales, offsets = round_to_nearest(weight_OI.to(pick_device()), bits, size)
    return {"codes": pack(codes, bits), "scales": scales, "offsets": offsets}
