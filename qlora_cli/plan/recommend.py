"""Values for a first recipe: by the base's size as the papers have them, then made to fit a card by tracing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from qlora_cli.constants import GIB
from qlora_cli.errors import RecipeError, ResourceError
from qlora_cli.model.embedding_limits import num_positions
from qlora_cli.model.prequantized import recipe_on
from qlora_cli.plan.likeness import config_or_sketch
from qlora_cli.plan.machine.gpus import Gpu
from qlora_cli.plan.parameter_counts import parameter_counts
from qlora_cli.plan.report import card_target
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace_cache import Tracer
from qlora_cli.recipe.schema import Recipe
from qlora_cli.recipe.starter import Choice, StarterValues
from qlora_cli.recipe.stored_weights import stored_weights

ROWS_A_STEP = 16
"""Batch size of the QLoRA paper's fine-tuning runs (arXiv:2305.14314, appendix B)."""

SUBSTITUTES = (
    {"model.attn_implementation": "eager"},
    {"lora.lora_dropout": 0.0},
    {"model.attn_implementation": "eager", "lora.lora_dropout": 0.0},
)
"""Settings to try with bases that the defaults do not fit: `transformers` runs Gemma 2 without torch's fused attention,
and PEFT's adapters on the fused experts of a mixture take no dropout."""

LENGTHS = (2048, 1024, 512)

FEWER_BITS, GROUP_SIZE = (3, 2), 64
"""Of integers, where 4 bits do not fit: 3.5 and 2.5 bits a weight with scales and offsets, 4.127 in NF4."""

FILLED = 0.95
"""Share of a card's memory that a first recipe may fill: what CUDA takes is an estimate, and rows differ."""


@dataclass(frozen=True)
class Size:
    """Settings that are chosen by the number of parameters."""

    r: int
    batch_size: int
    learning_rate: str
    r_why: str
    learning_rate_why: str


def size_of(num_params: float) -> Size:
    """The first choice for a base of that size.

    >>> [size_of(size).r for size in (1.5e9, 8e9, 33e9)], [size_of(size).learning_rate for size in (8e9, 14e9)]
    ([16, 16, 8], ['2.0e-4', '1.0e-4'])
    """
    rank = "rank matters little (arXiv:2305.14314, section 4)"
    rate = "2e-4 up to 13B, 1e-4 above (arXiv:2305.14314, appendix B)"
    if num_params < 6.5e9:
        return Size(16, 8, "2.0e-4", f"below 7B: 16, {rank}", rate)
    if num_params <= 30e9:
        learning_rate = "2.0e-4" if num_params < 13.5e9 else "1.0e-4"
        return Size(16, 4, learning_rate, f"7 to 30B: 8 to 16, {rank}", rate)
    return Size(8, 2, "1.0e-4", f"above 30B: 4 to 16, {rank}", rate)


def recommend_values(base_model: str, data: str, card: Gpu) -> StarterValues:
    """Values with which a base fits a card, each with its reason.

    Raises:
        RecipeError: if neither the base's configuration nor its size is known.
        ResourceError: if it does not fit with the shortest rows and the smallest rank.
    """
    recipe = Recipe.model_validate(
        {"name": "new", "model": {"base_model": base_model}, "quantization": {}, "data": {"train": data}}
    )
    config, origin = config_or_sketch(recipe.model)
    recipe = recipe_on(recipe, config)
    target = card_target(card)
    memory = round((target.memory_bytes or 0) * FILLED)
    request, num_params = _supported(PlanRequest(recipe, config, target.device))
    size = size_of(num_params)
    tracer = Tracer()
    for candidate in _candidates(request, size):
        needed = tracer.device_bytes(candidate)
        if needed <= memory:
            of = f"{needed / GIB:.1f} of {(target.memory_bytes or 0) / GIB:.1f} GiB"
            planned = f"Planned for {card.name}: {of}, by tracing {origin}, {num_params / 1e9:.1f}B parameters."
            return _values(candidate, size, card, planned)
    raise ResourceError(
        f"{base_model} needs {needed / GIB:.1f} GiB in {_bits(candidate)} bit with one row of "
        f"{candidate.recipe.data.max_length} tokens and r 4, and {card.name} has {memory / GIB:.1f} GiB for a process "
        f"if {1 - FILLED:.0%} are left free",
        hint="choose a smaller base or a larger card",
    )


def _supported(request: PlanRequest) -> tuple[PlanRequest, int]:
    """The request with what its base needs other than the defaults, and the parameters of that base.

    Raises:
        RecipeError: if the base needs other keys than a first recipe has.
    """
    try:
        return request, parameter_counts(request).num_base
    except RecipeError as error:
        fault = error
    for settings in SUBSTITUTES:
        changed = request.changed(settings)
        with suppress(RecipeError):
            return changed, parameter_counts(changed).num_base
    [problem, *_] = fault.problems
    raise RecipeError(
        problem.text, hint=f"write the recipe without --gpu, then plan it with the keys that it needs: {problem.hint}"
    ) from fault


def _candidates(request: PlanRequest, size: Size) -> Iterator[PlanRequest]:
    """From the first choice down: fewer rows, then shorter ones, then a smaller rank, then fewer bits."""
    lengths = _lengths(request)
    batches = [size.batch_size >> shift for shift in range(size.batch_size.bit_length())]
    tried = [(batch, lengths[0], size.r) for batch in batches]
    tried += [(1, length, size.r) for length in lengths[1:]] + [(1, lengths[-1], 4)]
    for batch, length, r in tried:
        yield request.changed(_sizes(batch, length, r))
    if stored_weights(request.config.to_dict()) is None:
        yield from _in_fewer_bits(request, _sizes(*tried[-1]))


def _in_fewer_bits(request: PlanRequest, smallest: Mapping[str, Any]) -> Iterator[PlanRequest]:
    """The smallest step in integers of fewer than 4 bits, where the base's layers can be divided into groups."""
    for bits in FEWER_BITS:
        section = {"quantization.method": "int", "quantization.bits": bits, "quantization.group_size": GROUP_SIZE}
        with suppress(RecipeError):
            changed = request.changed({**smallest, **section})
            parameter_counts(changed)
            yield changed


def _sizes(batch: int, length: int, r: int) -> dict[str, Any]:
    return {
        "training.per_device_train_batch_size": batch,
        "training.gradient_accumulation_steps": ROWS_A_STEP // batch,
        "data.max_length": length,
        "lora.r": r,
        "lora.lora_alpha": 2.0 * r,
    }


def _lengths(request: PlanRequest) -> tuple[int, ...]:
    """Row lengths to try, none beyond the positions of the base."""
    positions = num_positions(request.config) or LENGTHS[0]
    return tuple(length for length in LENGTHS if length <= positions) or (positions,)


def _values(request: PlanRequest, size: Size, card: Gpu, planned: str) -> StarterValues:
    recipe = request.recipe
    batch, accumulation = recipe.training.rows_at_once, recipe.training.num_passes
    length, r = recipe.data.max_length, recipe.lora.r
    if length == num_positions(request.config):
        length_why = "the base has no more positions"
    else:
        longer = "longer" if length == LENGTHS[0] else f"{2 * length}"
        length_why = f"in tokens; `qlora plan --gpu '{card.name}' --fit` says whether {longer} fits"
    values = StarterValues(
        r=Choice(f"{r}", f"{size.r_why}{_high_rank(card)}"),
        lora_alpha=Choice(f"{2 * r}", "the update is scaled by lora_alpha / r; 2 r keeps the scale at any rank"),
        max_length=Choice(f"{length}", length_why),
        learning_rate=Choice(size.learning_rate, size.learning_rate_why),
        per_device_train_batch_size=Choice(
            f"{batch}", f"the largest of {_powers(size.batch_size)} that fits {card.name}"
        ),
        gradient_accumulation_steps=Choice(
            f"{accumulation}", f"{batch} x {accumulation} = {ROWS_A_STEP} rows a step, as in the paper's runs"
        ),
        planned=planned,
        **_substituted(recipe),
    )
    return _as_rounded(values, recipe, card)


def _substituted(recipe: Recipe) -> dict[str, Choice]:
    """The values that stand in for defaults which the base cannot do with."""
    chosen = {}
    if recipe.model.attn_implementation == "eager":
        why = "transformers runs this base without torch's fused attention; flash_attention_2 takes less memory"
        chosen["attn_implementation"] = Choice("eager", why)
    if recipe.lora.lora_dropout == 0:
        chosen["lora_dropout"] = Choice("0", "adapters on the fused experts of this base take no dropout")
    return chosen


def _as_rounded(values: StarterValues, recipe: Recipe, card: Gpu) -> StarterValues:
    """The values with the section of a base that is rounded to integers because its 4 bits do not fit."""
    section = recipe.quantization
    if section is None or section.method != "int" or section.bits not in FEWER_BITS:
        return values
    why = f"nf4 does not fit {card.name}; fewer bits lose more: `qlora eval` says what the tuned model is worth"
    return replace(
        values,
        method=Choice("int", why),
        bits=Choice(f"{section.bits}", "`calibration: rows` loses less, and loads the base once in 16 bit"),
        group_size=Choice(f"{section.group_size}", "32 loses less and takes half a bit a weight more"),
        quant_type=None,
        double_quant=None,
    )


def _bits(request: PlanRequest) -> int:
    return 4 if request.recipe.quantization is None else request.recipe.quantization.num_bits


def _high_rank(card: Gpu) -> str:
    """Advice on high rank by the card's memory: 32 at 24 GB, 64 at 48 GB."""
    gigabytes = card.memory_mib / 1024
    if gigabytes < 22:
        return ""
    return f"; up to {32 if gigabytes < 44 else 64} here, at 5e-5 to 1e-4"


def _powers(largest: int) -> str:
    """
    >>> _powers(4)
    '1, 2, 4'
    """
    return ", ".join(str(1 << shift) for shift in range(largest.bit_length()))
