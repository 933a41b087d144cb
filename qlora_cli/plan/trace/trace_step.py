"""The trace of one training step. Layers that are alike are traced once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from qlora_cli.plan.trace.fake_model import skeleton
from qlora_cli.plan.trace.gradient_buckets import with_gradient_sums
from qlora_cli.plan.trace.layer_repetition import extrapolate_layers, find_pattern, short_length
from qlora_cli.plan.trace.live_memory import Stage
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace.stages import decoder_layers
from qlora_cli.plan.trace.step import fake_step
from qlora_cli.plan.trace.timeline import MemoryTrace
from qlora_cli.progress import progress
from qlora_cli.recipe.stored_weights import stored_weights

WORTHWHILE = 0.6
"""Share of the layers up to which tracing two short models is quicker than tracing the full one."""

OPTIMIZER_TOLERANCE = 0.01
"""Clipping and the optimizer go over parameters, not layers, so their few scalars are not repeated."""


@progress("tracing a step")
def trace_step(request: PlanRequest) -> MemoryTrace:
    """The trace of one step on one GPU, also where others train with it.

    Raises:
        RecipeError: if the base cannot be built or run.
    """
    trace = _trace_alone(request)
    return with_gradient_sums(trace, request) if request.device.num_gpus > 1 else trace


def _trace_alone(request: PlanRequest) -> MemoryTrace:
    """By way of shorter models where the layers prove to repeat."""
    signatures = layer_signatures(request)
    num_layers = len(signatures)
    pattern = find_pattern(signatures)
    short = short_length(pattern, num_layers)
    longer = short + pattern.period
    if short + longer > WORTHWHILE * num_layers or _names_a_layer(request):
        return fake_step(request)
    short_trace, longer_trace = (fake_step(_shortened(request, count, num_layers)) for count in (short, longer))
    try:
        predicted = extrapolate_layers(short_trace, pattern, longer)
        if not _is_same(predicted, longer_trace):
            return fake_step(request)
        return extrapolate_layers(longer_trace, pattern, num_layers)
    except ValueError:
        return fake_step(request)


def layer_signatures(request: PlanRequest) -> list[object]:
    """The distinguishing facts of each layer: its class, its parameters, and what the configuration lists for it."""
    layers = decoder_layers(skeleton(request))
    lists = _per_layer_lists(request, len(layers))
    return [
        (
            type(layer).__name__,
            tuple((name, tuple(parameter.shape), parameter.dtype) for name, parameter in layer.named_parameters()),
            tuple(str(values[index]) for values in lists.values()),
        )
        for index, layer in enumerate(layers)
    ]


def _per_layer_lists(request: PlanRequest, num_layers: int) -> dict[str, Sequence[object]]:
    settings = vars(request.config.get_text_config())
    return {
        name: value for name, value in settings.items() if isinstance(value, list | tuple) and len(value) == num_layers
    }


def _shortened(request: PlanRequest, count: int, num_layers: int) -> PlanRequest:
    """The request for the first `count` layers of its base."""
    config = copy.deepcopy(request.config)
    text = config.get_text_config()
    text.num_hidden_layers = count
    for name, values in _per_layer_lists(request, num_layers).items():
        setattr(text, name, values[:count])
    return replace(request, config=config)


def _names_a_layer(request: PlanRequest) -> bool:
    """Whether the recipe, or the base as it is stored, treats one layer differently: only names with a path can."""
    quantization = request.recipe.quantization
    lora = request.recipe.lora
    targets = () if isinstance(lora.target_modules, str) else lora.target_modules
    skipped = () if quantization is None else quantization.skip_modules
    stored = stored_weights(request.config.to_dict())
    kept = () if stored is None else stored.skipped or ()
    is_of_layer = any(part.isdigit() for name in kept for part in name.split("."))
    return is_of_layer or any("." in name for name in (*targets, *lora.modules_to_save, *skipped))


def _is_same(predicted: MemoryTrace, measured: MemoryTrace) -> bool:
    """Whether every phase reaches the same height."""
    pairs = zip(predicted.highest, measured.highest, strict=True)
    for (phase, height), (other, other_height) in pairs:
        if (phase.stage, phase.layer) != (other.stage, other.layer):
            return False
        allowed = OPTIMIZER_TOLERANCE * other_height if phase.stage is Stage.OPTIMIZER else 0
        if abs(height - other_height) > allowed:
            return False
    return predicted.peak.by_kind == measured.peak.by_kind
