"""Merges that must not happen, and why."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import torch
from peft import PeftModel, PeftType
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from qlora_cli.choices import Onto
from qlora_cli.constants import INITS_AGAINST_ROUNDING, MERGE_RECORD
from qlora_cli.deploy.integers import can_keep_codes, is_in_integers
from qlora_cli.errors import ArgumentError, IdentityError, NumericError
from qlora_cli.model.adapter_kind import FOLDED, AdapterKind
from qlora_cli.model.adapter_tensors import ADAPTER
from qlora_cli.model.fingerprint import base_folder
from qlora_cli.model.prequantized import stored_in
from qlora_cli.model.tuned import TunedSource
from qlora_cli.run.files import read_json_object

MERGED_BY_PEFT = ("MiCA", "QA-LoRA")
"""Variants of LoRA whose merge by PEFT was compared with the adapter."""

IN_NO_WEIGHT = ("ADAPTION_PROMPT", "LILY")
"""Methods beside the prompt methods that PEFT itself cannot merge."""


def refuse_no_adapter(source: TunedSource) -> None:
    """Refuse a folder that holds a model and no adapter.

    Raises:
        ArgumentError: if there is nothing to merge.
    """
    if source.adapter is None:
        raise ArgumentError(
            f"'{source.folder}' is a model without an adapter: there is nothing to merge",
            hint="name a run directory or a PEFT adapter folder",
        )


def refuse_unmergeable(source: TunedSource) -> None:
    """Refuse an adapter that is no update of weight matrices as this project folds them, by name and with the way on.

    Raises:
        ArgumentError: with what to type.
    """
    kind = source.kind
    if kind is None:
        return
    if kind.is_prompt or kind.method in IN_NO_WEIGHT:
        raise ArgumentError(
            f"is {kind.title}, which no weight of the base holds: there is nothing to merge",
            place=str(kind.folder),
            hint=f"use it as it is: `qlora generate {quote(str(kind.folder))} --prompt TEXT`, or chat, or eval",
        )
    part = _part_of_its_own(kind)
    if part is not None and not can_keep_codes(source):
        raise ArgumentError(
            f"is {part}, which `qlora merge` does not fold into weights",
            place=str(kind.folder),
            hint=f"{_way_on(source, kind)}; unmerged it works: `qlora generate {quote(str(kind.folder))} --prompt X`",
        )


def _part_of_its_own(kind: AdapterKind) -> str | None:
    """What the adapter has beside updates of weight matrices; None where there is nothing."""
    if kind.method not in FOLDED:
        return kind.title
    if kind.variant is not None:
        return f"{kind.variant}, a variant of LoRA"
    return f"{kind.title} on replicated layers (layer_replication)" if kind.layer_replication else None


def _way_on(source: TunedSource, kind: AdapterKind) -> str:
    """How to merge with PEFT onto the unquantized base."""
    if kind.variant is not None and kind.variant not in MERGED_BY_PEFT:
        return f"whether PEFT's merge_and_unload gives the same model was not tried for {kind.variant}"
    if kind.layer_replication:
        return "PEFT's merge_and_unload adds the updates of a layer's copies into the one weight that they share"
    code = (
        "import sys; from peft import PeftModel; from transformers import AutoModelForCausalLM as Base; "
        "model = PeftModel.from_pretrained(Base.from_pretrained(sys.argv[1]), sys.argv[2]).merge_and_unload(); "
        "model.save_pretrained(sys.argv[3])"
    )
    command = f'python -c "{code}" {quote(source.model.base_model)} {quote(str(kind.folder))} MERGED'
    return f"PEFT does, without a check: `{command}`"


def refuse_second_merge(source: TunedSource, adapter_sha256: str) -> None:
    """Refuse a base that already contains this adapter: its update would count twice.

    Raises:
        IdentityError: if the base folder's record names the same adapter weights.
    """
    record_path = base_folder(source.model) / MERGE_RECORD
    if not record_path.is_file():
        return
    record = read_json_object(record_path, hint="merge that model again")
    if record.get("adapter_sha256") == adapter_sha256:
        raise IdentityError(
            f"this adapter is already merged into the base model '{source.model.base_model}'",
            place=str(record_path),
            hint=f"use '{source.model.base_model}' as it is, or merge onto the base that the adapter was trained on",
        )


def refuse_zero_adapter(tuned: PeftModel, source: TunedSource) -> None:
    """Refuse an adapter that changes nothing: every factor that starts at zero is zero, and nothing else was trained.

    That is an adapter as it was before its first step, so the fault is in the training: a numeric failure.

    Raises:
        NumericError: if merging would give back the base.
    """
    if any(_is_trained(module) for module in tuned.modules()) or _has_biases(tuned):
        return
    is_svd = tuned.peft_config[ADAPTER].peft_type == PeftType.ADALORA
    factor = "lora_E" if is_svd else "lora_B"  # the one that starts at zero
    zero_at_start = [
        parameter
        for name, parameter in tuned.named_parameters()
        if f".{factor}." in name or ".lora_embedding_A." in name
    ]
    if not any(torch.count_nonzero(weight) for weight in zero_at_start):
        raise NumericError(
            f"the adapter in '{source.adapter}' is inert: {_still(len(zero_at_start), is_svd)}, "
            "so the merged model would be the base",
            hint=f"train it: the first step with a learning rate above 0 moves {factor.removeprefix('lora_')}",
        )


def _still(num_factors: int, is_svd: bool) -> str:
    """
    >>> _still(4, False), _still(0, False)
    ('all 4 of its B matrices are zero', 'its tokens have the rows of the base')
    """
    if num_factors == 0:
        return "its tokens have the rows of the base"
    return f"all {num_factors} of its {'E vectors' if is_svd else 'B matrices'} are zero"


def _is_trained(module: nn.Module) -> bool:
    """Whether an adapter's module, other than a low-rank update, may differ from the base's."""
    if isinstance(module, TrainableTokensLayer):
        rows, original = module.trainable_tokens_delta[ADAPTER], module.trainable_tokens_original[ADAPTER]
        return not torch.equal(rows, original.to(rows))
    return isinstance(module, ModulesToSaveWrapper)


def _has_biases(tuned: PeftModel) -> bool:
    return getattr(tuned.peft_config[ADAPTER], "bias", "none") != "none"


def refuse_plain_base(source: TunedSource, onto: Onto, out: Path | None) -> None:
    """Refuse to write a base alone where that would be a copy, or where it has no place of its own.

    Raises:
        ArgumentError: with what to type.
    """
    if can_keep_codes(source):
        raise ArgumentError(
            f"--base-only has no use for '{source.folder}': no engine puts a QA-LoRA adapter onto plain weights",
            hint="merge it: leave --base-only out",
        )
    if source.quantization is None and not is_in_integers(base_folder(source.model)):
        raise ArgumentError(
            f"--base-only writes the dequantized base, and that of '{source.folder}' was not quantized in training",
            hint=f"serve the adapter on '{source.model.base_model}' as it is",
        )
    if onto != "dequantized":
        raise ArgumentError("--base-only writes the dequantized base, and never the original", hint="leave --onto out")
    if out is None:
        raise ArgumentError("--base-only needs a folder for the base", hint="name one with --out")


def refuse_no_original(source: TunedSource, onto: Onto) -> None:
    """Refuse to merge onto weights that the base does not hold: those before they were packed.

    Raises:
        ArgumentError: for a base that is stored so, and `onto` "original".
    """
    stored = stored_in(base_folder(source.model)) if onto != "dequantized" and source.base_source is None else None
    is_trained_on = stored is not None and stored.is_taken_over and not source.model.dequantize
    if stored is not None and (stored.is_trained_as_stored or is_trained_on):
        raise ArgumentError(
            f"--onto {onto} cannot be had: base '{source.model.base_model}' holds its weights in {stored} only",
            hint="leave --onto out; it merges onto the dequantized base",
        )


def refuse_correction_onto_original(source: TunedSource, onto: Onto) -> None:
    """Refuse to add an update that makes up for quantization error to a base that has none.

    Raises:
        ArgumentError: for a run with LoftQ or calibrated init and `onto` "original".
    """
    init = source.recipe.lora.init_lora_weights if source.recipe else None
    if onto != "dequantized" and init in INITS_AGAINST_ROUNDING:
        raise ArgumentError(
            f"--onto {onto} does not go with lora.init_lora_weights {init}: the adapter makes up for the error "
            "of the quantized base, which the original does not have",
            hint="leave --onto out; it merges onto the dequantized base",
        )
