"""A base written in integers once, and found again: each linear weight rounded as it is read, one at a time.

What others have stored in integers is taken over without rounding (`model/integer/taking_over.py`).

The folder is an ordinary one that `transformers` reads with our quantizer (`model/integer/quantizer.py`). For each
linear layer it has, in the place of `weight` [O, I]:

    codes    uint8 [O, I * bits / 8]   see `codes.py`
    scales   float16 [O, G]; float32 where those of others do not fit
    offsets  float16 [O, G]; float32 as scales, and in a merged model, where an update is added to them

Shape letters: O = output features, I = input features, G = groups.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedConfig

from qlora_cli.cache_folder import CACHE_ELSEWHERE, cache_folder
from qlora_cli.model.device import pick_device
from qlora_cli.model.fingerprint import base_folder, fingerprint_base, weight_files
from qlora_cli.model.integer.codes import pack
from qlora_cli.model.integer.layers import layers_to_round, weight_keys
from qlora_cli.model.integer.quantizer import IntegerConfig
from qlora_cli.model.integer.rounding import round_to_nearest
from qlora_cli.model.integer.taking_over import take_over
from qlora_cli.model.other_files import copy_other_files
from qlora_cli.model.own_code import refuse_code_from_elsewhere
from qlora_cli.model.packed_weights import StoredTensors, packed_weights
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from qlora_cli.recipe.stored_weights import stored_section, stored_weights
from qlora_cli.run.disk_errors import naming
from qlora_cli.run.files import read_json_object
from qlora_cli.run.folders import replaced_folder

SINGLE = "model.safetensors"

VERSION = 1
"""Of the way in which weights are rounded; folders of other versions are not taken."""


def stored_base(model: ModelSection, quantization: QuantizationSection | None) -> ModelSection:
    """The base as it is loaded: of a base in integers the folder that has them, written where it is not there yet.

    Raises:
        RecipeError: if a linear layer cannot be divided into groups, or the base's files do not have its weight.
        IdentityError: if the base cannot be found.
        ResourceError: if the cache cannot be written.
    """
    if quantization is None or not quantization.is_in_integers:
        return model
    folder = base_folder(model)
    stored = stored_weights(read_json_object(folder / "config.json", hint="download the base model again"))
    if stored is not None and stored.is_in_integers:
        return model
    out = integer_folder(model, quantization)
    if not out.is_dir():
        is_taken_over = stored is not None and stored.is_taken_over and not model.dequantize
        write = _write_taken_over if is_taken_over else _write
        write(model, quantization, out)
    changes = {"base_model": str(out), "revision": None, "dequantize": False, "allow_pickle": False}
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


def _write_taken_over(model: ModelSection, quantization: QuantizationSection, out: Path) -> None:
    base = base_folder(model, whole=True)
    config = _config_of(model, base)
    with naming(out, CACHE_ELSEWHERE), replaced_folder(out) as folder:
        places, kept = take_over(model, base, config, folder)
        _write_other_files(base, folder, places, quantization, kept)


def _write(model: ModelSection, quantization: QuantizationSection, out: Path) -> None:
    base = base_folder(model, whole=True)
    choice = layers_to_round(model, quantization, _config_of(model, base))
    tensors = _PlainTensors(base)
    to_round = weight_keys(choice, tensors.names, model.base_model)
    with naming(out, CACHE_ELSEWHERE), replaced_folder(out) as folder:
        with progress(f"rounding the base to {quantization.num_bits}-bit integers", len(to_round)) as phase:
            places: dict[str, str] = {}
            for path in weight_files(base):
                written: dict[str, torch.Tensor] = {}
                for key in tensors.in_file(path):
                    value = tensors.read(key)
                    if key not in to_round:
                        written[key] = value
                        continue
                    written |= _rounded(key.removesuffix("weight"), value, quantization)
                    phase.advance()
                save_file(written, folder / path.name, metadata={"format": "pt"})
                places |= dict.fromkeys(written, path.name)
        _write_other_files(base, folder, places, quantization, choice.kept)


def _config_of(model: ModelSection, base: Path) -> PreTrainedConfig:
    if model.trust_remote_code:
        refuse_code_from_elsewhere(model.base_model, PreTrainedConfig.get_config_dict(base)[0])
    return AutoConfig.from_pretrained(base, trust_remote_code=model.trust_remote_code)


def _write_other_files(
    base: Path, folder: Path, places: dict[str, str], quantization: QuantizationSection, kept: Iterable[str]
) -> None:
    """All that lies beside the weights.

    Args:
        places: file of each tensor.
        kept: linear layers that are plain.
    """
    if len(set(places.values())) > 1:
        _write_json(folder / f"{SINGLE}.index.json", {"metadata": {}, "weight_map": places})
    copy_other_files(base, folder)
    _write_config(folder, quantization, sorted(kept))


def _rounded(prefix: str, weight_OI: torch.Tensor, quantization: QuantizationSection) -> dict[str, torch.Tensor]:
    bits = quantization.num_bits
    size = quantization.weights_in_group if quantization.weights_in_group > 0 else weight_OI.shape[1]
    codes, scales, offsets = round_to_nearest(weight_OI.to(pick_device()), bits, size)
    parts = {"codes": pack(codes, bits), "scales": scales, "offsets": offsets}
    return {f"{prefix}{part}": tensor.cpu() for part, tensor in parts.items()}


class _PlainTensors:
    """The tensors of a base by the names that they have where nothing is packed."""

    def __init__(self, folder: Path) -> None:
        self._packed = packed_weights(folder)
        self._stored = StoredTensors(folder)
        self._hidden = {name for packed in self._packed.values() for name in packed.stored_names}

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return [*self._packed, *(name for name in self._stored.names if name not in self._hidden)]

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


def _write_config(folder: Path, quantization: QuantizationSection, kept: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for place in (config, config.get("text_config") or {}):
        place.pop("compression_config", None)
        place.pop("quantization_config", None)
    stored = IntegerConfig(quantization.num_bits, quantization.weights_in_group, kept, calibration="none")
    config["quantization_config"] = stored.to_dict()
    _write_json(folder / "config.json", config)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
