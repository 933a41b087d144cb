"""`qlora merge`: fold an adapter into its base, prove that nothing was lost, and write a plain model folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qlora_cli.choices import MergedDtype, Onto
from qlora_cli.constants import MERGE_RECORD
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.base_logits import base_logits
from qlora_cli.deploy.checks import (
    refuse_correction_onto_original,
    refuse_no_adapter,
    refuse_no_original,
    refuse_plain_base,
    refuse_second_merge,
    refuse_unmergeable,
    refuse_zero_adapter,
)
from qlora_cli.deploy.fold_plan import fold_plan, plain_skeleton
from qlora_cli.deploy.integers import can_keep_codes, folded_in_16_bit, stored_model
from qlora_cli.deploy.merged_model import write_model
from qlora_cli.deploy.model_folder import vocabulary_of, write_generation_settings, write_tokenizer
from qlora_cli.deploy.onto import better, held_out_losses
from qlora_cli.deploy.record import Merged, Precisions, describe_base, describe_codes, describe_onto, merge_record
from qlora_cli.deploy.reload import is_on_disk, reloaded
from qlora_cli.deploy.verification_rows import probe_rows
from qlora_cli.deploy.verify import (
    MAX_KL_ORIGINAL,
    MAX_KL_ROUNDED,
    MAX_KL_SAME_NUMBERS,
    Agreement,
    compare,
    record_logits,
    refuse_disagreement,
)
from qlora_cli.deploy.written_weights import WrittenWeights
from qlora_cli.errors import ArgumentError
from qlora_cli.model.adapter import ADAPTER_WEIGHTS
from qlora_cli.model.device import DTYPES, dtype_name, free_memory, precision_of
from qlora_cli.model.fingerprint import base_folder
from qlora_cli.model.tuned import TunedSource, find_tuned, load_tuned
from qlora_cli.run.claim import refuse_links
from qlora_cli.run.files import sha256_file, write_json
from qlora_cli.run.staging import staged_folder


@dataclass(frozen=True)
class MergeOptions:
    """Options of a merge."""

    onto: Onto = "dequantized"
    """dequantized: the weights that training saw. original: the base as it was before quantization."""

    dtype: MergedDtype = "auto"
    """Of all floating tensors; auto keeps that of each tensor of the base."""

    force: bool = False
    """Replace a model folder that is already there."""

    base_only: bool = False
    """Leave the adapter out: the dequantized base, on which every adapter that was trained on that base can be served.
    """

    keep_codes: bool = True
    """Leave the base of a QA-LoRA run in its integers; with False all weights become plain."""

    max_kl: float | None = None
    """Bound on the mean KL in nats per token, instead of the documented one."""

    @property
    def may_keep_codes(self) -> bool:
        """Whether nothing asks for plain weights."""
        return self.keep_codes and self.dtype == "auto" and not self.base_only


@dataclass(frozen=True)
class _Reference:
    """Logits of the model that is to be written, before it is."""

    onto: Onto
    """dequantized or original, also where `auto` was asked for."""

    onto_in_words: str
    losses: dict[Onto, float]
    """Held-out loss onto each, where it was measured."""

    rows: list[list[int]]
    logits: list[torch.Tensor]
    effect: Agreement
    precision: str
    computes_in: str
    """Type in which the written model is read back."""

    is_exact: bool
    """Both compute in float32, and no weight was rounded further."""

    weights: WrittenWeights


def merge_run(path: TunedSource | Path | None, out: Path | None, options: MergeOptions) -> Merged:
    """Merge the run or adapter at `path` into `out`, verified; `out` appears complete or not at all.

    Args:
        path: run directory or PEFT adapter folder; the latest run when None.
        out: folder for the merged model; `<run>/merged` when None.
        options: onto what, in which precision.

    Raises:
        ArgumentError: if there is nothing to merge or `out` is taken.
        IdentityError: if the base is not the one of training, or contains the adapter already.
        NumericError: if the adapter is inert, or the merged model is not the trained one.
    """
    source = find_tuned(path)
    if options.base_only:
        refuse_plain_base(source, options.onto, out)
    out = out or default_out(source)
    adapter_sha256 = check_mergeable(source, options)
    with staged_folder(out, force=options.force) as stage:
        return replace(merge_into(stage, source, options, adapter_sha256), path=out)


def merge_into(folder: Path, source: TunedSource, options: MergeOptions, adapter_sha256: str) -> Merged:
    """Merge into a folder that is there and empty; whoever made it takes care that it is not found half full.

    Args:
        adapter_sha256: what `check_mergeable` has found.

    Raises:
        NumericError: as `merge_run`.
    """
    reference = _write_merged(source, options, folder)
    with reloaded(folder, source.model, reference.computes_in) as plain:
        agreement = compare(reference.logits, record_logits(plain, reference.rows, together=is_on_disk(plain)))
        compared_in = Precisions(reference.precision, precision_of(plain))
    merged = Merged(
        path=folder,
        onto=reference.onto,
        onto_in_words=reference.onto_in_words,
        losses=reference.losses,
        dtype=reference.weights.dtype,
        num_parameters=reference.weights.num_parameters,
        num_tensors=reference.weights.num_tensors,
        left_out=reference.weights.left_out,
        effect=reference.effect,
        agreement=agreement,
        compared_in=compared_in,
        max_kl=_bound(source, options, reference) if options.max_kl is None else options.max_kl,
    )
    refuse_disagreement(agreement, merged.max_kl)
    write_json(folder / MERGE_RECORD, merge_record(source, merged, None if options.base_only else adapter_sha256))
    return merged


def check_mergeable(source: TunedSource, options: MergeOptions) -> str:
    """SHA-256 of the adapter's weights, if they may be merged.

    Raises:
        IdentityError: if they are merged already.
        ArgumentError: if they belong onto another base than `options` names.
    """
    adapter_sha256 = adapter_identity(source)
    refuse_unmergeable(source)
    refuse_second_merge(source, adapter_sha256)
    refuse_correction_onto_original(source, options.onto)
    refuse_no_original(source, options.onto)
    return adapter_sha256


def default_out(source: TunedSource) -> Path:
    """`<run>/merged` for a run's final adapter.

    Raises:
        ArgumentError: for an adapter that is not a run's final one.
    """
    refuse_no_adapter(source)
    if source.run is None or source.adapter != source.run.adapter_path:
        raise ArgumentError(
            f"'{source.folder}' is not a run directory, so the merged model has no default place",
            hint="name a folder with --out",
        )
    refuse_links(source.run)
    return source.run.merged_path


def adapter_identity(source: TunedSource) -> str:
    """SHA-256 of the adapter's weights.

    Raises:
        ArgumentError: if the source has no adapter.
    """
    refuse_no_adapter(source)
    assert source.adapter is not None
    return sha256_file(source.adapter / ADAPTER_WEIGHTS)


def _write_merged(source: TunedSource, options: MergeOptions, stage: Path) -> _Reference:
    """Record the tuned model's logits and write the merged one; the model is released on return."""
    tuned = load_tuned(source)
    refuse_zero_adapter(tuned.model, source)
    renderer = Renderer(tuned.tokenizer)
    rows = probe_rows(source.recipe, renderer)
    logits, precision = record_logits(tuned.model, rows), precision_of(tuned.model)
    of_base = base_logits(tuned, rows)
    effect = compare(logits, of_base)
    losses = held_out_losses(tuned.model, source, renderer) if options.onto == "auto" else {}
    onto: Onto = better(losses) if options.onto == "auto" else options.onto
    is_of_memory = source.is_base_apart and source.base_source is None
    skeleton = plain_skeleton(tuned.model)
    is_resized = skeleton.config.get_text_config().vocab_size != vocabulary_of(base_folder(source.model))
    plan = fold_plan(
        tuned.model,
        kind=source.kind,
        is_resized=is_resized,
        is_of_memory=is_of_memory,
        keeps_codes=options.may_keep_codes and can_keep_codes(source),
    )
    if onto == "original":
        plan.precisions.clear()
    if options.base_only:
        plan.changes.clear()
        plan.new_biases.clear()
        with tuned.model.disable_adapter():
            logits = record_logits(tuned.model, rows)
    in_words = describe_base(source) if options.base_only else describe_onto(source, onto, plan.has_experts)
    trained_in, tokenizer = tuned.model.dtype, tuned.tokenizer
    del tuned
    free_memory()
    written_from = source if onto == "original" else replace(source, model=stored_model(source))
    weights = write_model(
        stage, written_from, skeleton, plan, dtype=None if options.dtype == "auto" else DTYPES[options.dtype]
    )
    write_tokenizer(stage, tokenizer, renderer, trust_code=source.model.trust_remote_code)
    write_generation_settings(stage, skeleton, tokenizer, renderer)
    computes_in = dtype_name(trained_in) if plan.keeps_codes else weights.dtype
    is_exact = trained_in is torch.float32 and computes_in == "float32"
    if plan.keeps_codes:
        is_exact = is_exact and not folded_in_16_bit(stage, weights)
    in_words = describe_codes(weights.dtype) if plan.keeps_codes else in_words
    return _Reference(onto, in_words, losses, rows, logits, effect, precision, computes_in, is_exact, weights)


def _bound(source: TunedSource, options: MergeOptions, reference: _Reference) -> float:
    """The documented bound on the mean KL."""
    if reference.onto == "original" and source.quantization is not None:
        return MAX_KL_ORIGINAL
    is_int8 = source.quantization is not None and source.quantization.is_int8
    return MAX_KL_SAME_NUMBERS if reference.is_exact and not is_int8 else MAX_KL_ROUNDED
