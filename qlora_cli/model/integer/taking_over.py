"""A base that others have stored in integers, written as ours once: codes and scales as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from qlora_cli.errors import RecipeError
from qlora_cli.model.fingerprint import has_only_pickles, weight_files
from qlora_cli.model.integer.foreign import DEQUANTIZE, ORIGINAL, ForeignLayer, foreign_layers
from qlora_cli.model.packed_weights import StoredTensors
from qlora_cli.model.towers.skeleton import kept_modules
from qlora_cli.progress import progress
from qlora_cli.recipe.base_files import cached_base
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.recipe.stored_weights import StoredWeights, stored_section, stored_weights


@dataclass(frozen=True)
class Layout:
    """What a folder of our integers will be: which linear layers stay plain, and the types of two of the parts."""

    kept: tuple[str, ...]
    scales: torch.dtype
    offsets: torch.dtype


def take_over(
    base: Path, skeleton: PreTrainedModel, settings: dict[str, Any], out: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write the base's weights in our integers.

    Args:
        base: its folder.
        skeleton: the whole model on the meta device, without quantization.
        settings: its config.json.
        out: an empty folder.

    Returns:
        The file of each tensor, and the linear layers that are plain.

    Raises:
        RecipeError: if a layer is stored in another way than config.json says, or the model has no such layer.
    """
    stored = _stored(settings)
    tensors = StoredTensors(base)
    layers = {layer.stored_names[0]: layer for layer in _layers(tensors, settings, stored)}
    layout = _layout(layers.values(), skeleton, stored)
    hidden = {name for layer in layers.values() for name in layer.stored_names}
    places: dict[str, str] = {}
    with progress(f"taking over the base's {stored.num_bits}-bit integers", len(layers)) as phase:
        for path in weight_files(base):
            written: dict[str, torch.Tensor] = {}
            for name in tensors.names_in(path):
                if name in layers:
                    written |= _parts(layers[name], layout)
                    phase.advance()
                elif name not in hidden:
                    written[name] = tensors.whole(name)
            save_file(written, out / path.name, metadata={"format": "pt"})
            places |= dict.fromkeys(written, path.name)
    return places, layout.kept


def layout_of(model: ModelSection, skeleton: PreTrainedModel, settings: dict[str, Any]) -> Layout:
    """The folder that `take_over` would write: off the base's files where they are here, else by config.json.

    Without the files scales are expected in float16, and so are offsets where all zero points are the same.

    Raises:
        RecipeError: as `take_over`.
    """
    stored = _stored(settings)
    here = Path(model.base_model)
    folder = here if here.is_dir() else cached_base(model.base_model, model.revision)
    if folder is not None and any(folder.glob("model*.safetensors")) and not has_only_pickles(folder):
        return _layout(_layers(StoredTensors(folder), settings, stored), skeleton, stored)
    section = stored_section(settings)
    ignored = [str(name) for name in section.get("ignore") or ()]
    ignored = [name.removeprefix("re:") for name in ignored] + [
        str(name).removeprefix("-:").removeprefix("-") for name in section.get("dynamic") or ()
    ]
    plain = [*kept_modules(skeleton), *ignored]
    kept = tuple(name for name in _linear(skeleton) if not should_convert_module(name, plain))
    is_symmetric = stored.integer_method == "w4a16" or section.get("sym") is not False
    return Layout(kept, torch.float16, torch.float16 if is_symmetric else torch.float32)


def _stored(settings: dict[str, Any]) -> StoredWeights:
    stored = stored_weights(settings)
    assert stored is not None, "only a base in integers is taken over"
    assert stored.is_taken_over, "the recipe's rules refuse the others"
    return stored


def _layers(tensors: StoredTensors, settings: dict[str, Any], stored: StoredWeights) -> list[ForeignLayer]:
    assert stored.num_bits is not None
    assert stored.group_size is not None
    layers = foreign_layers(tensors, stored_section(settings), stored.num_bits, stored.group_size)
    for layer in layers:
        layer.check()
    return layers


def _layout(layers: Iterable[ForeignLayer], skeleton: PreTrainedModel, stored: StoredWeights) -> Layout:
    layers, linear = list(layers), _linear(skeleton)
    # Some files leave out the prefix of the class that holds the head.
    names = {f"{key}.": name for name in linear for key in (name.partition(".")[2], name) if key}
    unknown = [layer.name.rstrip(".") for layer in layers if layer.name not in names]
    if unknown or not layers:
        what = "has no linear layer of such a name" if unknown else "has no layer in integers at all"
        shown = f"'{unknown[0]}' is stored in {stored}, and {type(skeleton).__name__} " if unknown else "the base "
        raise RecipeError(f"{shown}{what}", hint=DEQUANTIZE if stored.can_be_dequantized else ORIGINAL)
    packed = {names[layer.name] for layer in layers}
    scales, offsets = zip(*(layer.scales_and_offsets() for layer in layers), strict=True)
    return Layout(tuple(name for name in linear if name not in packed), _fitting(scales), _fitting(offsets))


def _linear(skeleton: PreTrainedModel) -> list[str]:
    return [name for name, module in skeleton.named_modules() if type(module) is nn.Linear]


def _fitting(values: Iterable[torch.Tensor]) -> torch.dtype:
    """float16 where it holds all values exactly, else float32."""
    fits = all(torch.equal(each.half().float(), each) for each in values)
    return torch.float16 if fits else torch.float32


def _parts(layer: ForeignLayer, layout: Layout) -> dict[str, torch.Tensor]:
    scales, offsets = layer.scales_and_offsets()
    parts = {"codes": layer.codes(), "scales": scales.to(layout.scales), "offsets": offsets.to(layout.offsets)}
    return {f"{layer.name}{part}": tensor.contiguous() for part, tensor in parts.items()}
