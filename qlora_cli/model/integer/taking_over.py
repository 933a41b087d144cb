"""A base that others have stored in integers, written as ours once: codes and scales as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from qlora_cli.errors import RecipeError
from qlora_cli.model.integer.foreign import DEQUANTIZE, ORIGINAL, ForeignLayer, foreign_layers
from qlora_cli.model.integer.layers import layers_taken_over
from qlora_cli.model.integer.shards import refuse_without_room, stored_bytes, write_shards
from qlora_cli.model.packed_weights import StoredTensors
from qlora_cli.progress import progress
from qlora_cli.recipe.base_files import cached_base
from qlora_cli.recipe.foreign_integers import weights_of_group
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.recipe.stored_weights import StoredWeights, stored_section, stored_weights


@dataclass(frozen=True)
class Layout:
    """What a folder of our integers will be: which linear layers stay plain, and the types of two of the parts."""

    kept: tuple[str, ...]
    scales: torch.dtype
    offsets: torch.dtype


def take_over(model: ModelSection, base: Path, config: PreTrainedConfig, out: Path) -> tuple[str, ...]:
    """Write the base's weights in our integers.

    Args:
        model: the recipe's.
        base: its folder.
        config: its configuration.
        out: an empty folder.

    Returns:
        The linear layers that are plain.

    Raises:
        RecipeError: if a layer is stored in another way than config.json says, or the model has no such layer.
        ResourceError: if the disk has no room.
    """
    tensors = StoredTensors(base)
    layers = {layer.stored_names[0]: layer for layer in _layers(tensors, config)}
    layout = _layout(model, config, layers.values())
    hidden = {name for layer in layers.values() for name in layer.stored_names}
    num_bytes = sum(stored_bytes(tensors, name) for name in tensors.names if name not in hidden)
    refuse_without_room(out, num_bytes + sum(_num_bytes(layer, layout) for layer in layers.values()))
    with progress(f"taking over the integers of {_stored(config)}", len(layers)) as phase:

        def tensors_of(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
            for name in tensors.names_in(path):
                if name in layers:
                    yield from _parts(layers[name], layout).items()
                    phase.advance()
                elif name not in hidden:
                    yield name, tensors.whole(name)

        write_shards(base, out, tensors_of)
    return layout.kept


def layout_of(model: ModelSection, config: PreTrainedConfig) -> Layout:
    """The folder that `take_over` would write: off the base's files where they are here, else by config.json.

    Without the files scales are expected in float16, and so are offsets where all zero points are the same.

    Raises:
        RecipeError: as `take_over`.
    """
    here = Path(model.base_model)
    folder = here if here.is_dir() else cached_base(model.base_model, model.revision)
    if folder is not None and any(folder.glob("model*.safetensors")):
        with torch.device("cpu"):  # a plan is made on the meta device
            return _layout(model, config, _layers(StoredTensors(folder), config))
    is_symmetric = stored_section(config.to_dict()).get("sym") is not False
    kept = layers_taken_over(model, config, None).kept
    return Layout(kept, torch.float16, torch.float16 if is_symmetric else torch.float32)


def _stored(config: PreTrainedConfig) -> StoredWeights:
    stored = stored_weights(config.to_dict())
    assert stored is not None, "only a base in integers is taken over"
    assert stored.is_taken_over, "the recipe's rules refuse the others"
    return stored


def _layers(tensors: StoredTensors, config: PreTrainedConfig) -> list[ForeignLayer]:
    stored = _stored(config)
    assert stored.num_bits is not None
    assert stored.group_size is not None
    layers = foreign_layers(tensors, stored_section(config.to_dict()), stored.num_bits, stored.group_size)
    for layer in layers:
        layer.check()
    return layers


def _layout(model: ModelSection, config: PreTrainedConfig, layers: Iterable[ForeignLayer]) -> Layout:
    layers, stored = list(layers), _stored(config)
    hint = DEQUANTIZE if stored.can_be_dequantized else ORIGINAL
    if not layers:
        text = f"model.base_model '{model.base_model}' holds no weights in {stored}, and its config.json says so"
        raise RecipeError(text, hint="download it again")
    try:
        choice = layers_taken_over(model, config, [f"{layer.name}weight" for layer in layers])
    except ValueError as fault:
        text = f"'{fault}' is stored in {stored}, and is no weight of a linear layer by itself once it is loaded"
        raise RecipeError(text, hint=hint) from fault
    scales, offsets = zip(*(layer.scales_and_offsets() for layer in layers), strict=True)
    return Layout(choice.kept, _fitting(scales), _fitting(offsets))


def _fitting(values: Iterable[torch.Tensor]) -> torch.dtype:
    """float16 where it holds all values exactly, else float32."""
    fits = all(torch.equal(each.half().float(), each) for each in values)
    return torch.float16 if fits else torch.float32


def _num_bytes(layer: ForeignLayer, layout: Layout) -> int:
    """Of what `_parts` gives."""
    num_rows, num_columns = layer.shape
    num_groups = num_columns // weights_of_group(layer.group_size, num_columns)
    group_bytes = layout.scales.itemsize + layout.offsets.itemsize
    return num_rows * (num_columns * layer.bits // 8 + num_groups * group_bytes)


def _parts(layer: ForeignLayer, layout: Layout) -> dict[str, torch.Tensor]:
    scales, offsets = layer.scales_and_offsets()
    parts = {"codes": layer.codes(), "scales": scales.to(layout.scales), "offsets": offsets.to(layout.offsets)}
    return {f"{layer.name}{part}": tensor.contiguous() for part, tensor in parts.items()}
