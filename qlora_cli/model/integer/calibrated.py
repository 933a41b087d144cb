"""A base in integers that one run's rows decide: rounded by GPTQ, block by block, and kept in that run's folder.

A block gets the inputs that the rounded blocks before it give (arXiv:2210.17323, section 3.3), so that each makes up
for a part of the errors so far. For every block the rows go through the model once, up to its end; on average that is
half a forward pass a block, in which any architecture keeps to its own ways of calling its blocks.

Shape letters: I = input features, T = tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from qlora_cli.model.base import load_base
from qlora_cli.model.device import free_memory
from qlora_cli.model.integer.codes import pack
from qlora_cli.model.integer.gptq import feedback_factor, round_with_feedback
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.integer.making import nearest_parts
from qlora_cli.model.integer.writing import Parts, plain_base, write_integers
from qlora_cli.model.layer_inputs import Batch, Groups, counted, layers_by_input, second_moments
from qlora_cli.model.towers.own_names import own_class
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from qlora_cli.run.folders import replaced_folder


def write_calibrated_base(
    model: ModelSection, quantization: QuantizationSection, batches: Sequence[Batch], out: Path
) -> None:
    """Write the base in integers to `out`, which appears complete or not at all.

    The base is loaded once in 16 bit, and released before this returns.

    Args:
        model: the plain base.
        quantization: bits and groups.
        batches: rows of the run as the collator makes them, without padding.
        out: a folder of the run.

    Raises:
        RecipeError, IdentityError, ResourceError: as `load_base` and `plain_base`.
        NumericError: if a layer gets inputs that are not finite.
    """
    if not batches:
        raise ValueError("a calibrated base needs rows")
    plain = plain_base(model, quantization, out)
    layers = _rounded_layers(model, quantization, batches, set(plain.choice.rounded))
    free_memory()

    def parts_of(name: str, weight_OI: torch.Tensor) -> Parts:
        if name not in layers:  # a part of the base that is not loaded for text
            return nearest_parts(quantization, name, weight_OI)
        layer = layers[name]
        return {"codes": layer.codes, "scales": layer.scales, "offsets": layer.offsets}

    with replaced_folder(out) as folder:
        write_integers(folder, plain, quantization, parts_of, "writing the base in integers")


def _rounded_layers(
    model: ModelSection, quantization: QuantizationSection, batches: Sequence[Batch], wanted: set[str]
) -> dict[str, IntegerLinear]:
    """The rounded layers by their names on the class of the base's files, on the CPU.

    Args:
        wanted: these names, of the layers that are rounded.
    """
    base = load_base(model, None)
    own = own_class(base)
    own_names = {
        name: own.name(name) if own else name for name, module in base.named_modules() if type(module) is nn.Linear
    }
    names = [name for name, own_name in own_names.items() if own_name in wanted]
    round_by_blocks(base, names, quantization, batches)
    layers = {own_names[name]: base.get_submodule(name) for name in names}
    return {name: layer.cpu() for name, layer in layers.items() if isinstance(layer, IntegerLinear)}


def round_by_blocks(
    base: PreTrainedModel, names: Sequence[str], quantization: QuantizationSection, batches: Sequence[Batch]
) -> None:
    """Put integer layers in the place of linear ones.

    Args:
        base: with plain weights.
        names: of the layers.
        quantization: bits and groups.
        batches: rows without padding.
    """
    base.eval()
    blocks = _blocks(base, names, batches[0])
    title = f"rounding the base to {quantization.num_bits}-bit integers on the run's rows"
    with progress(title, len(blocks) * len(batches) + len(names)) as phase:
        for block, groups in blocks.items():
            first = {group[0]: base.get_submodule(group[0]) for group in groups}
            moments = second_moments(base, first, counted(batches, phase), until=base.get_submodule(block))
            for group in groups:
                feedback_II = feedback_factor(moments.pop(group[0]), group[0])
                for name in group:
                    _swap(base, name, feedback_II, quantization)
                    phase.advance()
        reached = {name for groups in blocks.values() for group in groups for name in group}
        for name in names:
            if name not in reached:
                _swap(base, name, None, quantization)
                phase.advance()


def _swap(
    base: PreTrainedModel, name: str, feedback_II: torch.Tensor | None, quantization: QuantizationSection
) -> None:
    """Round a layer; to the nearest where there is no feedback. Its plain weight is released."""
    plain = base.get_submodule(name)
    assert isinstance(plain, nn.Linear)
    bits, group_size = quantization.num_bits, quantization.weights_in_group
    layer = IntegerLinear(plain.in_features, plain.out_features, bits, group_size, plain.bias)
    weight_OI = plain.weight.detach()
    if feedback_II is None:
        parts = nearest_parts(quantization, name, weight_OI)
        layer.codes, layer.scales, layer.offsets = parts["codes"], parts["scales"], parts["offsets"]
    else:
        codes_OI, layer.scales, layer.offsets = round_with_feedback(weight_OI, feedback_II, bits, layer.group_size)
        layer.codes = pack(codes_OI, bits)
    base.set_submodule(name, layer)


def block_of(name: str) -> str:
    """The block that a layer belongs to: its name up to the first number; itself where there is none.

    >>> block_of("model.layers.3.mlp.experts.5.up_proj"), block_of("transformer.project_in")
    ('model.layers.3', 'transformer.project_in')
    """
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def _blocks(base: PreTrainedModel, names: Sequence[str], batch: Batch) -> dict[str, Groups]:
    """The blocks that text reaches, in the order of computing, and their layers by the tensor that they get.

    Layers of such a block that the batch does not reach, such as an expert's, stand alone.
    """
    blocks: dict[str, Groups] = {}
    groups = layers_by_input(base, {name: base.get_submodule(name) for name in names}, batch)
    for group in groups:
        blocks.setdefault(block_of(group[0]), []).append(group)
    reached = {name for group in groups for name in group}
    for name in names:
        if name not in reached and block_of(name) in blocks:
            blocks[block_of(name)].append([name])
    return blocks
