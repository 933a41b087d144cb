"""How far an adapter has moved each weight of its base, and how many of its directions it uses.

No matrix of a weight's size is made but the dequantized weight itself, of one module at a time: norms and singular
values of B @ A come from factors of size R.

Shape letters: O = output features, I = input features, R = rank, E = experts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from qlora_cli.model.adapter_kind import TITLES
from qlora_cli.model.adapter_tensors import ADAPTER
from qlora_cli.model.dequantize import dequantized_weight, is_quantized
from qlora_cli.model.experts.packed import packed_experts
from qlora_cli.run.adapter_health import AdapterHealth, ModuleHealth

STILL = 1e-6
"""Share of the weight's norm up to which DoRA's update is rounding: its magnitudes are norms in float32."""

ENERGY = 0.9


def adapter_health(model: PeftModel, *, starts_at_zero: bool = True) -> AdapterHealth:
    """Figures of each module that the adapter on `model` changes.

    Args:
        model: as loaded, on any device.
        starts_at_zero: whether the update was zero before training; false after PiSSA, LoftQ and the like.
    """
    config = model.peft_config[ADAPTER]
    method = str(config.peft_type.value)
    title = "DoRA" if getattr(config, "use_dora", False) else TITLES.get(method, method)
    title = "QA-LoRA" if getattr(config, "use_qalora", False) else title
    modules = tuple(_modules(model.base_model.model, "", starts_at_zero)) if method == "LORA" else ()
    return AdapterHealth(title, modules, starts_at_zero)


def singular_values(A_RI: torch.Tensor, B_OR: torch.Tensor) -> torch.Tensor:
    """The R singular values of B @ A, largest first, float64, from two QR decompositions.

    >>> singular_values(torch.tensor([[3.0, 0, 0], [0, 4, 0]]), torch.tensor([[1.0, 0], [0, 1], [0, 0]])).tolist()
    [4.0, 3.0]
    """
    triangle_A = torch.linalg.qr(A_RI.double().T, mode="r").R
    triangle_B = torch.linalg.qr(B_OR.double(), mode="r").R
    return torch.linalg.svdvals(triangle_B @ triangle_A.T)


def effective_rank(values: torch.Tensor) -> float:
    """exp of the entropy of singular values over their sum (Roy and Vetterli 2007): R equal ones give R.

    >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6), effective_rank(torch.zeros(3))
    (2.0, 0.0)
    """
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def directions_for(values: torch.Tensor, share: float) -> int:
    """How many of the largest singular values hold that share of the sum of squares.

    >>> directions_for(torch.tensor([3.0, 1.0, 0.1]), 0.9), directions_for(torch.zeros(3), 0.9)
    (2, 0)
    """
    energy = values.square().cumsum(0)
    return 0 if energy[-1] == 0 else int((energy < share * energy[-1]).sum()) + 1


def _modules(module: nn.Module, name: str, starts_at_zero: bool) -> Iterator[ModuleHealth]:
    if isinstance(module, ParamWrapper):
        yield from _experts(module, name)
    elif isinstance(module, LoraLayer):
        yield _layer(module, name, starts_at_zero)
    elif isinstance(module, ModulesToSaveWrapper):
        yield from _whole(module, name)
    else:
        for child_name, child in module.named_children():
            yield from _modules(child, f"{name}.{child_name}" if name else child_name, starts_at_zero)


def _layer(layer: LoraLayer, name: str, starts_at_zero: bool) -> ModuleHealth:
    if isinstance(layer, LoraEmbedding):
        A_RI, B_OR = layer.lora_embedding_A[ADAPTER].detach(), layer.lora_embedding_B[ADAPTER].detach()
    else:
        A_RI, B_OR = layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach()
    A_RI, B_OR = A_RI.flatten(1), B_OR.flatten(1)  # of a convolution too
    weight = _weight(layer.get_base_layer())
    weight_norm = float(torch.linalg.vector_norm(weight, dtype=torch.float32))
    values = singular_values(A_RI, B_OR) * abs(layer.scaling[ADAPTER])
    if size := getattr(layer, "qalora_group_size", {}).get(ADAPTER):
        values *= A_RI.shape[1] / size**0.5  # each column stands for `size` weights, times groups / size
    update_norm, magnitude_change = float(values.norm()), None
    has_moved = update_norm > 0
    if layer.use_dora[ADAPTER]:
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight.detach().flatten()
        is_turned = isinstance(layer.get_base_layer(), Conv1D | nn.Embedding)
        weight_OI = weight.T if is_turned else weight.flatten(1)
        update_norm, magnitude_change = _dora(weight_OI, A_RI, B_OR * layer.scaling[ADAPTER], magnitude)
        has_moved = update_norm > STILL * weight_norm or (has_moved and not starts_at_zero)
    return ModuleHealth(
        name,
        "lora" if magnitude_change is None else "dora",
        update_norm,
        weight_norm,
        has_moved,
        r=layer.r[ADAPTER],
        effective_rank=effective_rank(values),
        rank_90=directions_for(values, ENERGY),
        magnitude_change=magnitude_change,
    )


def _dora(
    weight_OI: torch.Tensor, A_RI: torch.Tensor, B_OR: torch.Tensor, magnitude_O: torch.Tensor
) -> tuple[float, float]:
    """Norm of W' - W, and mean change of the magnitudes, where W' = m (W + B @ A) / ||W + B @ A|| row by row.

    W' - W = (c - 1) W + c B @ A with c = m / ||W + B @ A||, and all norms of rows come from W, W @ A^T and A @ A^T.
    """
    square_O = torch.linalg.vector_norm(weight_OI, dim=1, dtype=torch.float32).double().square()
    A, B = A_RI.double().to(weight_OI.device), B_OR.double().to(weight_OI.device)
    cross_O = ((weight_OI.float() @ A.float().T).double() * B).sum(1)
    added_O = ((B @ (A @ A.T)) * B).sum(1).clamp(min=0)
    factor_O = magnitude_O.double().to(weight_OI.device) / (square_O + 2 * cross_O + added_O).clamp(min=0).sqrt()
    off_O = factor_O - 1
    changed_O = off_O.square() * square_O + 2 * off_O * factor_O * cross_O + factor_O.square() * added_O
    change_O = (magnitude_O.double().to(weight_OI.device) / square_O.sqrt() - 1).abs()
    return float(changed_O.clamp(min=0).nansum().sqrt()), float(change_O[square_O > 0].mean())


def _experts(wrapper: ParamWrapper, name: str) -> Iterator[ModuleHealth]:
    """Each adapted parameter of a module of experts; the wrappers stand around one another."""
    wrappers, module = [wrapper], wrapper.base_layer
    while isinstance(module, ParamWrapper):
        wrappers.append(module)
        module = module.base_layer
    packed = packed_experts(module)
    for each in wrappers:
        reader = packed.get(each.parameter_name)
        weight = module.get_parameter(each.parameter_name) if reader is None else getattr(module, each.parameter_name)
        num_experts = weight.shape[0] if weight.dim() == 3 else 1
        A, B = each.lora_A[ADAPTER].weight.detach(), each.lora_B[ADAPTER].weight.detach()
        # PEFT keeps A as [E x R, I], an expert's rows together, and B as [O, R x E], a direction's columns together.
        A_ERI, B_ORE = A.reshape(num_experts, -1, A.shape[1]), B.reshape(len(B), -1, num_experts)
        scaling = abs(each.scaling[ADAPTER])
        values = [singular_values(A_ERI[index], B_ORE[:, :, index]) * scaling for index in range(num_experts)]
        norm = float(torch.stack(values).norm())
        yield ModuleHealth(
            f"{name}.{each.parameter_name}",
            "experts" if num_experts > 1 else "lora",
            norm,
            float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32)),
            norm > 0,
            r=each.r[ADAPTER],
            effective_rank=sum(map(effective_rank, values)) / num_experts,
            rank_90=max(directions_for(one, ENERGY) for one in values),
        )
    yield from _modules(module, name, starts_at_zero=True)


def _whole(wrapper: ModulesToSaveWrapper, name: str) -> Iterator[ModuleHealth]:
    """Weights that were trained in full, beside those that they replace."""
    originals = dict(wrapper.original_module.named_parameters())
    for parameter_name, trained in wrapper.modules_to_save[ADAPTER].named_parameters():
        original = originals[parameter_name].detach()
        change = trained.detach().to(original.device).float() - original.float()
        norm = float(torch.linalg.vector_norm(change))
        weight_norm = float(torch.linalg.vector_norm(original, dtype=torch.float32))
        full_name = name if parameter_name == "weight" else f"{name}.{parameter_name}"
        yield ModuleHealth(full_name, "whole", norm, weight_norm, norm > 0)


def _weight(module: nn.Module) -> torch.Tensor:
    return dequantized_weight(module) if is_quantized(module) else module.get_parameter("weight").detach()
