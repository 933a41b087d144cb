"""CLoQ: adapters that start by making up for what the quantization error does to the run's own inputs.

Deng et al. 2025, arXiv:2501.18475. LoftQ makes the error of a weight small as a matrix, as if all inputs were alike.
Here it is weighted by the second moment H = E[x x^T] of the inputs x that the layer gets:

    min over B, A of  E |(E - B A) x|^2 = |(E - B A) R|_F^2,   E = W - dequantize(Q(W)),   R R^T = H

By Eckart-Young the best product is B A = [E R]_r R^-1, with [.]_r the r largest directions of an SVD.

With QA-LoRA (arXiv:2309.14717) the adapter gets z = P x, one number for each group of inputs (`of_groups` says which).
E x splits into M z, its regression on z, and a rest that no function of z correlates with linearly. So with the second
moment K = E[z z^T] = P H P^T of z

    E |E x - B A z|^2 = |(M - B A) S|_F^2 + constant,   M = E H P^T K^-1,   S S^T = K

and B A = [M S]_r S^-1: the same with M and K for E and H, reduced-rank regression. H = I gives LoftQ.

The inputs are those of the quantized base, which is what the adapter will run on, and is loaded already. On a Llama of
5.8M parameters in NF4 those of the 16-bit base gave nearly the same start: KL to it 7.19e-3 against 7.24e-3 at r = 16.

Shape letters: O = output features, I = input features, C = columns of A (I, or the groups of QA-LoRA), R = rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel

from qlora_cli.constants import GIB
from qlora_cli.model.initialization import AdapterValues, QuantizationErrors, num_adapter_inputs
from qlora_cli.model.layer_inputs import DAMPING, Batch, Groups, counted, damped, layers_by_input, second_moments
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import ModelSection

MAX_MOMENTS_BYTES = 2 * GIB
"""Second moments held together, I^2 x 4 bytes for each distinct input; the rows are run again for the next ones. Those
of a 7B model are 22 GB."""


def calibrated_values(tuned: PeftModel, model: ModelSection, batches: Sequence[Batch]) -> AdapterValues:
    """Starting values of all adapters on quantized layers. The base stays the plain quantized one, as with LoftQ.

    Args:
        tuned: the adapter as it was attached, B = 0, on its quantized base.
        model: which base; the weights before quantization are read from its files, one at a time.
        batches: rows of the run as the collator makes them, without padding.

    Raises:
        RecipeError: if the weights of a target are not in the base's files under its name.
        NumericError: if a layer gets inputs that are not finite.
    """
    if not batches:
        raise ValueError("calibrated initial values need rows")
    errors = QuantizationErrors(tuned, model, "calibrated")
    parts = list(_within_memory(_layers_by_input(tuned, errors, batches[0]), errors))
    values = {}
    num_steps = len(parts) * len(batches) + len(errors.layers)
    with progress("fitting adapters to the quantization error on the run's rows", num_steps) as phase:
        for groups in parts:
            first = {group[0]: errors.layers[group[0]] for group in groups}
            moments = second_moments(tuned.get_base_model(), first, counted(batches, phase))
            for group in groups:
                damped_II = _damped(moments.pop(group[0]), group[0])
                inputs = _adapter_inputs(damped_II, num_adapter_inputs(errors.layers[group[0]]))
                for name in group:
                    values[name] = _best_product(errors.of(name), inputs, errors.layers[name].r["default"])
                    phase.advance()
    return values


def _layers_by_input(tuned: PeftModel, errors: QuantizationErrors, batch: Batch) -> Groups:
    """The quantized layers by the tensor that they get; those that the batch does not reach stand alone."""
    groups = layers_by_input(tuned.get_base_model(), errors.layers, batch)
    reached = {name for group in groups for name in group}
    return [*groups, *([name] for name in errors.layers if name not in reached)]


def _within_memory(groups: Groups, errors: QuantizationErrors) -> Iterator[Groups]:
    """The groups in parts whose second moments stay within `MAX_MOMENTS_BYTES`; one group at least."""
    part: Groups = []
    num_bytes = 0
    for group in groups:
        needed = 4 * errors.layers[group[0]].in_features ** 2
        if part and num_bytes + needed > MAX_MOMENTS_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append(group)
        num_bytes += needed
    if part:
        yield part


def _damped(moment_II: torch.Tensor, name: str) -> torch.Tensor:
    """H + damping; the identity for a layer that no token reached, with which the start is that of LoftQ."""
    hint = "--set model.dtype=bfloat16, or --set lora.init_lora_weights=loftq"
    damped_II = damped(moment_II, name, "lora.init_lora_weights is calibrated", hint)
    return torch.eye(len(moment_II), device=moment_II.device) if damped_II is None else damped_II


@dataclass(frozen=True)
class _AdapterInputs:
    """Second moment K of what A gets, taken apart: K = Q diag(d^2) Q^T."""

    directions: torch.Tensor
    """Q [C, C]."""

    roots: torch.Tensor
    """d [C], of which none is 0."""

    crossed: torch.Tensor | None = None
    """H P^T [I, C], the moment between the layer's inputs and z; None where A gets the inputs themselves."""

    def weighted(self, error_OI: torch.Tensor) -> torch.Tensor:
        """What B A Q diag(d) is to be like: E Q diag(d), or M Q diag(d) = E H P^T Q diag(1 / d)."""
        if self.crossed is None:
            return (error_OI @ self.directions) * self.roots
        return (error_OI @ self.crossed @ self.directions) / self.roots


def _adapter_inputs(damped_II: torch.Tensor, num_columns: int) -> _AdapterInputs:
    """Of an adapter whose A has so many columns, on a layer whose inputs have the second moment `damped_II`."""
    size = len(damped_II) // num_columns
    if size == 1:
        return _AdapterInputs(*_square_root(damped_II, DAMPING))
    pooled = num_columns / size
    crossed_IC = pooled * damped_II.unflatten(1, (num_columns, size)).sum(-1)
    moment_CC = pooled * crossed_IC.unflatten(0, (num_columns, size)).sum(1)
    return _AdapterInputs(*_square_root(moment_CC, DAMPING * pooled**2 * size), crossed_IC)


def _square_root(moment_CC: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Q [C, C] and d [C] of a moment, of which damping leaves no eigenvalue below `least`.

    An eigendecomposition, since a Cholesky factor does not exist where rounding has left a negative eigenvalue.
    """
    eigenvalues_C, directions_CC = torch.linalg.eigh(moment_CC)
    return directions_CC, eigenvalues_C.clamp_min(least).sqrt()


def _best_product(error_OI: torch.Tensor, inputs: _AdapterInputs, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A [R, C] and B [O, R] of the least squared error, with the norm shared evenly between the two."""
    U, S, Vh = torch.linalg.svd(inputs.weighted(error_OI), full_matrices=False)
    right_RC = (S[:r, None] * Vh[:r] / inputs.roots) @ inputs.directions.T
    turn_RR, S, Wh = torch.linalg.svd(right_RC, full_matrices=False)
    root = S.sqrt()
    return root[:, None] * Wh, U[:, :r] @ turn_RR * root
