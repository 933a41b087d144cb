"""LoftQ and PiSSA: adapters that start from the base's own weights instead of from zero. `calibration.py` has CLoQ.

Both work on the weights as they were before quantization. PEFT refuses PiSSA on quantized weights, needs a GPU
for LoftQ, and leaves lora_alpha / r out of it; here both run on any device, with the scaling.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers.pytorch_utils import Conv1D

from qlora_cli.errors import RecipeError
from qlora_cli.model.adapter import attach_adapter, lora_config
from qlora_cli.model.base import load_base
from qlora_cli.model.dequantize import dequantized_weight, is_quantized
from qlora_cli.model.fingerprint import base_folder, weight_files
from qlora_cli.model.packed_weights import packed_weights
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import LoraSection, ModelSection
from qlora_cli.run.folders import replaced_folder

PISSA_POWER_ITERATIONS = 16

AdapterValues = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module name -> (A of shape [r, in_features], B of shape [out_features, r])."""


def split_principal(model: ModelSection, lora: LoraSection, residual_folder: Path) -> AdapterValues:
    """PiSSA (arXiv:2404.02948): take the r principal directions out of every target weight.

    W = scaling * B @ A + W_residual, computed in 16 bit or more. The residual model is saved to
    `residual_folder`; it is the base that gets quantized and that the run stands on from then on.
    """
    base = load_base(model, None)
    attach_adapter(base, lora).unload()
    config = lora_config(lora, base)
    config.init_lora_weights = f"pissa_niter_{PISSA_POWER_ITERATIONS}"
    with progress("taking the principal part out of the base"):
        tuned = get_peft_model(base, config)
    values = {
        name: (layer.lora_A["default"].weight.detach().cpu(), layer.lora_B["default"].weight.detach().cpu())
        for name, layer in _lora_layers(tuned)
    }
    with replaced_folder(residual_folder) as folder, progress("writing the residual base"):
        tuned.unload().save_pretrained(folder)
    return values


def quantization_error_values(tuned: PeftModel, model: ModelSection) -> AdapterValues:
    """LoftQ (arXiv:2310.08659, one step from the plain quantization): B @ A makes up for W - dequantize(Q(W)).

    The base stays the plain quantized one, so the adapter can be loaded onto it by anything. Weights are read
    one at a time from the base's safetensors. For QA-LoRA see `of_groups`.

    Raises:
        RecipeError: if the weights of a target are not in the base's files under its name.
    """
    errors = QuantizationErrors(tuned, model, "loftq")
    values = {}
    with progress("fitting adapters to the quantization error", len(errors.layers)) as phase:
        for name, layer in errors.layers.items():
            values[name] = _best_rank_r(of_groups(errors.of(name), num_adapter_inputs(layer)), layer.r["default"])
            phase.advance()
    return values


class QuantizationErrors:
    """What each quantized layer lacks of the base's own weight, for an adapter to make up for.

    Args:
        tuned: the adapter on its quantized base.
        model: which base.
        init: the `init_lora_weights` that asks.
    """

    def __init__(self, tuned: PeftModel, model: ModelSection, init: str) -> None:
        self._original = _OriginalWeights(base_folder(model), init)
        self.layers = {name: layer for name, layer in _lora_layers(tuned) if is_quantized(layer.get_base_layer())}
        """The adapter's layers whose base layer is quantized, by name."""

    def of(self, name: str) -> torch.Tensor:
        """(W - dequantize(Q(W))) / scaling in float32, [out_features, in_features]: what B @ A is to be like.

        Raises:
            RecipeError: if the weight is not in the base's files under its name.
        """
        layer = self.layers[name]
        stored = dequantized_weight(layer.get_base_layer()).float()
        wanted = self._original.read(name).to(stored)
        if getattr(layer.get_base_layer(), "source_cls", None) is Conv1D:
            wanted = wanted.T  # Conv1D keeps [in_features, out_features]
        return (wanted - stored) / layer.scaling["default"]


def num_adapter_inputs(layer: LoraLayer) -> int:
    """Numbers that a layer's A gets: the inputs of the layer, or one for each group of them with QA-LoRA."""
    return int(layer.lora_A["default"].in_features)


def of_groups(error_OI: torch.Tensor, num_groups: int) -> torch.Tensor:
    """The M [O, G] of which an update of whole groups comes nearest to an error; itself if each input is a group.

    The A of QA-LoRA (arXiv:2309.14717) gets z = P x: the means of groups of inputs, times G, as PEFT pools them. With
    c = G / group size, P is c where an input belongs to a group and else 0, so P P^T = c^2 (group size) I, and

        |E - B A P|_F^2 = |E - M P|_F^2 + c^2 (group size) |M - B A|_F^2,   M = E P^T (P P^T)^-1,

    which is the mean of E over each group, divided by c.

    >>> of_groups(torch.tensor([[1.0, 3.0, 4.0, 4.0, 0.0, 2.0]]), 3)
    tensor([[1.3333, 2.6667, 0.6667]])
    """
    size = error_OI.shape[1] // num_groups
    return error_OI if size == 1 else error_OI.unflatten(1, (num_groups, size)).mean(-1) * size / num_groups


def _best_rank_r(matrix: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, in] and B [out, r] whose product is the closest matrix of rank r (Eckart-Young)."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    root = S[:r].sqrt()
    return root[:, None] * Vh[:r], U[:, :r] * root


def set_adapter_values(tuned: PeftModel, values: AdapterValues) -> None:
    """Write A and B into the adapter's parameters, in their dtype.

    Values of a lower rank, for layers with fewer than r outputs, leave the other directions as they are.
    """
    with torch.no_grad():
        for name, layer in _lora_layers(tuned):
            if name in values:
                a, b = values[name]
                layer.lora_A["default"].weight[: len(a)].copy_(a)
                layer.lora_B["default"].weight[:, : len(a)].copy_(b)


def _lora_layers(tuned: PeftModel) -> list[tuple[str, LoraLayer]]:
    return [(name, module) for name, module in tuned.base_model.model.named_modules() if isinstance(module, LoraLayer)]


class _OriginalWeights:
    """Weights by module name out of a folder of safetensors files, read one at a time; packed ones are unpacked."""

    def __init__(self, folder: Path, init: str) -> None:
        self._folder, self._init = folder, init
        self._packed = packed_weights(folder)
        self._files: dict[str, Path] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def read(self, module_name: str) -> torch.Tensor:
        # Some bases are stored without the prefix of the class that holds their head: GPT-2's "transformer.".
        for key in (f"{module_name}.weight", f"{module_name.partition('.')[2]}.weight"):
            if key in self._packed:
                return self._packed[key].rows(0, self._packed[key].shape[0])
            if key in self._files:
                with safe_open(self._files[key], framework="pt") as file:
                    return file.get_tensor(key)
        raise RecipeError(
            f"lora.init_lora_weights is {self._init}, but '{self._folder}' has no weight named '{module_name}.weight'",
            hint="use `init_lora_weights: default` for this base model",
        )
