"""What becomes of each parameter of the base in a merge, read off the tuned model as it was loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qlora_cli import upstream
from qlora_cli.deploy.changes import Addition, Change, ExpertsChange, LinearChange, Replacement, TokenRows
from qlora_cli.deploy.lora_math import LowRankUpdate, merged_weight, of_columns
from qlora_cli.deploy.stored_precision import StoredInFourBit, StoredPrecision, stored_precision, stored_precision_of
from qlora_cli.errors import ArgumentError
from qlora_cli.model.adapter_kind import AdapterKind
from qlora_cli.model.adapter_tensors import ADAPTER
from qlora_cli.model.dequantize import dequantized_weight, is_quantized
from qlora_cli.model.experts.packed import packed_experts
from qlora_cli.model.integer.linear import IntegerLinear

ADALORA_EPSILON = 1e-5
"""PEFT adds it to the rank, which pruning may bring to 0 (`AdaLoraLayer`)."""


@dataclass
class FoldPlan:
    """Parameters that a merge changes, by the names of the plain model; all others stay as they are."""

    changes: dict[str, Change] = field(default_factory=dict)
    """What the adapter does."""

    precisions: dict[str, StoredPrecision] = field(default_factory=dict)
    """How training stored them, where it quantized them."""

    new_biases: dict[str, torch.Tensor] = field(default_factory=dict)
    """Biases that the adapter brings for layers that have none."""

    is_of_memory: bool = False
    """Adapted weights are taken as they are in memory, and not from the base's files."""

    keeps_codes: bool = False
    """A QA-LoRA update goes into the offsets of a base in integers, and not onto dequantized weights."""

    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    """Types that tensors of the checkpoint get in the place of their own, by their keys."""

    @property
    def has_experts(self) -> bool:
        """Whether training quantized fused experts too."""
        return any(isinstance(stored, StoredInFourBit) and stored.is_flat for stored in self.precisions.values())

    @property
    def names(self) -> list[str]:
        """Of all parameters that are not the base's any more."""
        return sorted({*self.changes, *self.precisions})


def fold_plan(
    tuned: PeftModel,
    *,
    kind: AdapterKind | None = None,
    is_resized: bool = False,
    is_of_memory: bool = False,
    keeps_codes: bool = False,
) -> FoldPlan:
    """Read the plan off a loaded model; of its tensors only those of the adapter are kept.

    Args:
        tuned: base and adapter.
        kind: what the adapter's file holds; None where it is known to hold no embeddings.
        is_resized: embeddings and head in memory have not the rows of those in the base's files.
        is_of_memory: PEFT has changed the base's weights as it loaded the adapter, which its files do not say: those of
            adapted layers are then kept merged, in memory.
        keeps_codes: leave the integers of the base and change their offsets.

    Raises:
        ArgumentError: if the adapter has a part that is not an update of a weight matrix.
        ResourceError: if an installed library lacks what this needs of it.
    """
    upstream.check(upstream.Road.MERGE)
    plan = FoldPlan(is_of_memory=is_of_memory, keeps_codes=keeps_codes)
    base = tuned.base_model.model
    _visit(base, "", plan)
    if getattr(tuned.peft_config[ADAPTER], "bias", "none") != "none":  # PEFT has put the trained ones into the base
        for name, tensor in base.named_parameters():
            if name.endswith(".bias") and not any(part in name for part in ("lora_", "modules_to_save", "original_")):
                _replace(name.replace(".base_layer.", "."), tensor, plan)
    _take_tables(
        base,
        embeddings=is_resized or (kind is not None and kind.holds_input_embeddings),
        head=is_resized or (kind is not None and kind.holds_output_head),
        plan=plan,
    )
    return plan


def _replace(name: str, tensor: torch.Tensor, plan: FoldPlan) -> None:
    """Enter a tensor that the adapter brings whole, with what it does to it besides."""
    change, value = plan.changes.get(name), _kept(tensor)
    if isinstance(change, Replacement):
        return
    if change is not None:
        rows = value.to(torch.float32, copy=True).reshape(-1, value.shape[-1])
        value = change.apply(rows, 0).reshape(value.shape)
    plan.changes[name] = Replacement(value)
    plan.precisions.pop(name, None)


def _take_tables(base: PreTrainedModel, *, embeddings: bool, head: bool, plan: FoldPlan) -> None:
    """Enter the embeddings and the head of which the base in memory has other rows than its files."""
    names = {id(module): name for name, module in base.named_modules()}
    table, top = base.get_input_embeddings(), base.get_output_embeddings()
    if embeddings:
        _replace(f"{names[id(table)]}.weight", _below(table).get_parameter("weight"), plan)
    if top is not None and (head or (embeddings and _below(top).weight is _below(table).weight)):
        _replace(f"{names[id(top)]}.weight", _below(top).get_parameter("weight"), plan)


def _below(module: nn.Module) -> nn.Module:
    """The base's own module, under whatever PEFT has put around it."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return _below(module.original_module)
    return _below(module.get_base_layer()) if isinstance(module, BaseTunerLayer) else module


def plain_skeleton(tuned: PeftModel) -> PreTrainedModel:
    """A model of the base's class and sizes with no memory behind its tensors, and not quantized."""
    base = tuned.base_model.model
    settings = base.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):
        return type(base)(type(base.config).from_dict(settings))


def _visit(module: nn.Module, prefix: str, plan: FoldPlan) -> None:
    """Enter everything below `module` into the plan."""
    if isinstance(module, ParamWrapper):
        _visit_experts(module, prefix, plan)
    elif isinstance(module, LoraLayer):
        _visit_layer(module, prefix, plan)
    elif isinstance(module, ModulesToSaveWrapper):
        for name, tensor in module.modules_to_save[ADAPTER].named_parameters():
            plan.changes[f"{prefix}{name}"] = Replacement(_kept(tensor))
    elif isinstance(module, TrainableTokensWrapper):
        _visit_tokens(module.token_adapter, prefix, plan)
    elif isinstance(module, TrainableTokensLayer):
        _visit_tokens(module, prefix, plan)
    elif isinstance(module, AuxiliaryTrainingWrapper):
        raise unmergeable(prefix, type(module).__name__)
    elif is_quantized(module) and not isinstance(module, IntegerLinear):  # whose files say how they are stored
        plan.precisions[f"{prefix}weight"] = stored_precision(module, is_turned=_is_turned(module))
    else:
        experts = packed_experts(module)
        for name, reader in experts.items():
            plan.precisions[f"{prefix}{name}"] = stored_precision_of(reader.quant_state, is_flat=True)
        for name, child in module.named_children():
            if not (experts and name == "parametrizations"):
                _visit(child, f"{prefix}{name}.", plan)


def _visit_layer(layer: LoraLayer, prefix: str, plan: FoldPlan) -> None:
    base_layer = layer.get_base_layer()
    if isinstance(base_layer, IntegerLinear):
        _visit_integers(layer, base_layer, prefix, plan)
        return
    is_matrix = is_quantized(base_layer) or isinstance(base_layer, nn.Linear | Conv1D | nn.Embedding)
    is_other_variant = ADAPTER in layer.lora_variant and not layer.use_dora[ADAPTER]
    if not is_matrix or is_other_variant:
        raise unmergeable(prefix, type(layer).__name__)
    _visit(base_layer, prefix, plan)
    if layer.lora_bias.get(ADAPTER):
        _add_bias(layer, prefix, plan)
    is_turned = _is_turned(base_layer)
    if plan.is_of_memory:
        stored = dequantized_weight(base_layer) if is_quantized(base_layer) else base_layer.get_parameter("weight")
        weight_OI = stored.T if is_turned and not is_quantized(base_layer) else stored
        merged_OI = merged_weight(weight_OI.detach().cpu(), _update(layer))
        plan.changes[f"{prefix}weight"] = Replacement(merged_OI.T if is_turned else merged_OI)
        plan.precisions.pop(f"{prefix}weight", None)
    else:
        plan.changes[f"{prefix}weight"] = LinearChange(_update(layer), is_turned)


def _visit_integers(layer: LoraLayer, base_layer: IntegerLinear, prefix: str, plan: FoldPlan) -> None:
    """An update of a layer in integers: any fits onto its dequantized weight, into its offsets one of whole groups."""
    update, num_features = _update(layer), base_layer.in_features
    is_pooled = update.A_RI.shape[1] < num_features
    is_other_variant = ADAPTER in layer.lora_variant and not (is_pooled or layer.use_dora[ADAPTER])
    if is_other_variant or (plan.keeps_codes and not is_pooled):
        raise unmergeable(prefix, type(layer).__name__)
    num_columns = num_features // base_layer.group_size if plan.keeps_codes else num_features
    if num_columns % update.A_RI.shape[1]:
        raise _finer_than_groups(prefix, num_features // update.A_RI.shape[1], base_layer.group_size)
    if layer.lora_bias.get(ADAPTER):
        _add_bias(layer, prefix, plan)
    if is_pooled:
        update = of_columns(update, num_columns, num_features)
    plan.changes[f"{prefix}{'offsets' if plan.keeps_codes else 'weight'}"] = LinearChange(update, is_turned=False)


def _finer_than_groups(prefix: str, num_together: int, group_size: int) -> ArgumentError:
    return ArgumentError(
        f"the adapter on '{prefix.rstrip('.')}' adds one number to each {num_together} weights, and an offset of the "
        f"base is for {group_size}",
        hint="add --dtype bfloat16: the merge writes plain weights, which hold any update",
    )


def _add_bias(layer: LoraLayer, prefix: str, plan: FoldPlan) -> None:
    """The bias of B, `lora_bias`: the adapter computes scaling * (B @ A @ x + bias)."""
    bias_O = _kept(layer.lora_B[ADAPTER].bias).float() * layer.scaling[ADAPTER]
    if layer.get_base_layer().bias is None:
        plan.new_biases[f"{prefix}bias"] = bias_O
    else:
        plan.changes[f"{prefix}bias"] = Addition(bias_O)


def _visit_tokens(layer: TrainableTokensLayer, prefix: str, plan: FoldPlan) -> None:
    """Single rows of an embedding or a head; a tied head has those of the embedding."""
    _visit(layer.get_base_layer(), prefix, plan)
    token_ids = torch.tensor(layer.token_indices[ADAPTER])
    plan.changes[f"{prefix}weight"] = TokenRows(token_ids, _kept(layer.trainable_tokens_delta[ADAPTER]))


def _visit_experts(wrapper: ParamWrapper, prefix: str, plan: FoldPlan) -> None:
    """Experts or a router whose parameters carry adapters, each in a wrapper around the next."""
    for layer, below in _unwrapped(wrapper):
        packed = packed_experts(below).get(layer.parameter_name)
        shape = below.get_parameter(layer.parameter_name).shape if packed is None else packed.shape
        change = (
            ExpertsChange(_update(layer), shape[0], layer._did_swap_in_out_features)
            if len(shape) == 3
            else LinearChange(_update(layer), is_turned=False)
        )
        plan.changes[f"{prefix}{layer.parameter_name}"] = change
    _visit(below, prefix, plan)


def _unwrapped(wrapper: ParamWrapper) -> Iterator[tuple[ParamWrapper, nn.Module]]:
    """Each wrapper with the module that all of them stand around."""
    wrappers, module = [], wrapper
    while isinstance(module, ParamWrapper):
        wrappers.append(module)
        module = module.base_layer
    for each in wrappers:
        yield each, module


def _update(layer: LoraLayer) -> LowRankUpdate:
    if isinstance(layer, AdaLoraLayer):
        return _svd_update(layer)
    magnitude_O = _kept(layer.lora_magnitude_vector[ADAPTER].weight) if layer.use_dora[ADAPTER] else None
    if isinstance(layer, LoraEmbedding):
        A_RI, B_OR = layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
    else:
        A_RI, B_OR = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return LowRankUpdate(_kept(A_RI), _kept(B_OR), layer.scaling[ADAPTER], magnitude_O)


def _svd_update(layer: AdaLoraLayer) -> LowRankUpdate:
    """AdaLoRA (arXiv:2303.10512): B @ (E * A), E the singular values; PEFT divides alpha by the rank plus 1e-5."""
    scaling = layer.scaling[ADAPTER] / (layer.ranknum[ADAPTER].item() + ADALORA_EPSILON)
    return LowRankUpdate(_kept(layer.lora_A[ADAPTER] * layer.lora_E[ADAPTER]), _kept(layer.lora_B[ADAPTER]), scaling)


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu()


def _is_turned(module: nn.Module) -> bool:
    """Whether the plain module keeps [I, O]; `transformers` notes in `source_cls` what a quantized one was before."""
    return issubclass(getattr(module, "source_cls", type(module)), Conv1D | nn.Embedding)


def unmergeable(prefix: str, kind: str) -> ArgumentError:
    """The error for a part of an adapter that no weight matrix can take up."""
    return ArgumentError(
        f"'{prefix.rstrip('.')}' carries a {kind} with parts that cannot be folded into a weight matrix",
        hint="LoRA, rsLoRA, DoRA and AdaLoRA on linear and embedding layers can be merged, LoRA on experts, "
        "modules_to_save, trainable_token_indices; serve this adapter unmerged",
    )
