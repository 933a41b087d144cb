"""Parameters of a model by how they are stored, counted on the meta device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import bitsandbytes as bnb
from peft import PeftModel

from qlora_cli.constants import GIB
from qlora_cli.model.embedding_limits import has_position_table, num_positions
from qlora_cli.model.integer.linear import num_integer_weights
from qlora_cli.model.towers.auto_class import is_loaded_whole
from qlora_cli.model.towers.targets import reach_of
from qlora_cli.model.towers.text_reach import untouched_roots
from qlora_cli.plan.disk import TrainedTensor
from qlora_cli.plan.loading import calibration_peak, is_unpacked, kept_bytes, loading_peak
from qlora_cli.plan.trace.fake_experts import is_marked
from qlora_cli.plan.trace.fake_model import meta_model
from qlora_cli.plan.trace.request import PlanRequest

NUM_SHOWN = 3


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters, each weight counted once however it is stored."""

    num_base: int
    num_quantized: int
    num_trained: int

    num_in_fused_experts: int
    """In weights of three dimensions, one slice an expert, quantized or not."""

    notes: tuple[str, ...]
    """Sentences that the user should read beside the budget."""

    trained: tuple[TrainedTensor, ...] = ()

    num_integers: int = 0
    """Weights in our integers."""

    @property
    def trained_share(self) -> float:
        """Trained parameters against all, the adapter's included."""
        return self.num_trained / (self.num_base + self.num_trained)


def parameter_counts(request: PlanRequest) -> ParameterCounts:
    """The facts of the model that the recipe trains.

    Raises:
        RecipeError: if the base cannot be built, or a target of the adapter does not exist.
    """
    model = meta_model(request)
    facts = count_parameters(model, is_quantized=request.recipe.quantization is not None)
    facts = replace(facts, notes=(*facts.notes, *_notes_on_parts(model, request)))
    if is_unpacked(request.recipe):
        facts = replace(facts, notes=(*facts.notes, str(loading_peak(model))))
    if request.recipe.is_base_calibrated:
        facts = replace(facts, notes=(*facts.notes, str(calibration_peak(request))))
    positions, length = num_positions(request.config), request.recipe.data.max_length
    if positions is None or length <= positions:
        return facts
    effect = "rows beyond cannot be trained on" if has_position_table(model) else "it has never seen later ones"
    note = f"this base was made for {positions:,} positions, and data.max_length is {length:,}: {effect}."
    return replace(facts, notes=(*facts.notes, note))


def _notes_on_parts(model: PeftModel, request: PlanRequest) -> list[str]:
    """What becomes of a base's parts that text does not go through: loaded all the same, or left out."""
    base = model.get_base_model()
    notes = []
    if not is_loaded_whole(base, request.config):
        name = type(base).__name__
        notes.append(f"the language model of this base is loaded alone, as {name}; its other parts take no memory.")
    reach = reach_of(base)
    if reach is None or not reach.unreached:
        return notes
    roots = untouched_roots(reach.unreached, reach.reached)
    left = [value for name, value in base.named_parameters() if name.startswith(tuple(f"{root}." for root in roots))]
    num_bytes = sum(kept_bytes(parameter) for parameter in left)
    shown = ", ".join(roots[:NUM_SHOWN]) + (", …" if len(roots) > NUM_SHOWN else "")
    notes.append(
        f"text does not go through {shown}: {sum(value.numel() for value in left):,} parameters without an adapter, "
        f"which are loaded all the same and take {num_bytes / GIB:,.2f} GiB."
    )
    return notes


def count_parameters(model: PeftModel, *, is_quantized: bool) -> ParameterCounts:
    """The facts of a model on the meta device, its quantized weights in their original shape."""
    num_integers = num_base = num_quantized = num_integer_weights(model)
    num_fused = fused_bytes = num_packed = 0
    trained: list[TrainedTensor] = []
    for parameter in model.parameters():
        size = parameter.numel()
        if parameter.requires_grad:
            trained.append(TrainedTensor(size, parameter.element_size()))
            continue
        num_base += size
        if isinstance(parameter, bnb.nn.Params4bit | bnb.nn.Int8Params):
            num_quantized += size
        elif is_marked(parameter):
            num_packed += size
        elif parameter.dim() == 3:
            num_fused += size
            fused_bytes += size * parameter.element_size()
    notes = []
    if is_quantized and num_fused > num_quantized + num_packed:
        notes.append(
            f"this recipe quantizes linear layers only, and this base keeps its experts in fused weights of three "
            f"dimensions: {num_fused / num_base:.0%} of its parameters stay in 16 bit, {fused_bytes / GIB:,.1f} GiB. "
            f"Only {num_quantized / num_base:.0%} are quantized: nearer to LoRA on a 16-bit base than to QLoRA. "
            "`quantization: {quant_type: nf4}` without `experts: false` quantizes them too."
        )
    elif is_quantized and num_quantized + num_packed == 0:
        notes.append(
            f"nothing of this base is quantized: transformers swaps plain linear layers only, and the layers of "
            f"{type(model.get_base_model()).__name__} are of a class of their own. All of it stays in 16 bit."
        )
    num_trained = sum(tensor.num_elements for tensor in trained)
    return ParameterCounts(
        num_base,
        num_quantized + num_packed,
        num_trained,
        num_fused + num_packed,
        tuple(notes),
        tuple(trained),
        num_integers,
    )
