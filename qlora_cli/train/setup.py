"""The parts of a training session, put together: model with adapter, packed rows, trainer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, set_seed

from qlora_cli import console
from qlora_cli.data.collator import Collator
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.base_place import refuse_moved
from qlora_cli.model.calibration import calibrated_values
from qlora_cli.model.device import dtype_name, pick_device, pick_dtype
from qlora_cli.model.experts.packed import trained_and_all
from qlora_cli.model.experts.passes import keep_experts_packed
from qlora_cli.model.experts.wanted import experts_in_words, keeps_experts_packed
from qlora_cli.model.initialization import quantization_error_values, set_adapter_values, split_principal
from qlora_cli.model.integer.calibrated import write_calibrated_base
from qlora_cli.model.layer_inputs import Batch
from qlora_cli.model.model_support import require_gradient_checkpointing, require_position_ids
from qlora_cli.model.noise import add_embedding_noise
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.arguments import optimizer_on, trainer_arguments
from qlora_cli.train.callbacks.early_stopping import EarlyStoppingCallback
from qlora_cli.train.checkpoint.identity import RunIdentity, checkpoint_identity
from qlora_cli.train.preflight.attention import check_causal_attention, check_packed_isolation
from qlora_cli.train.saving_trainer import Saving
from qlora_cli.train.tracking import refuse_in_words
from qlora_cli.train.trainer import QloraTrainer, TrainerParts

NUM_CALIBRATION_TOKENS = 16_384
"""Tokens whose inputs weight the quantization error. On a Llama of 5.8M parameters in NF4, r = 16, the KL to the 16-bit
base is 7.5e-3 with 2,048 of them, 7.2e-3 with 16,384 and 7.2e-3 with 32,768."""


def setup_model(recipe: Recipe, run: RunDirectory, *, is_resumed: bool, calibration: Sequence[Batch] = ()) -> PeftModel:
    """The quantized base with its adapter at the start of training; a resumed run fills in the values later.

    Args:
        calibration: what `calibration_batches` returns.
    """
    set_seed(recipe.training.seed)
    init = recipe.lora.init_lora_weights
    values = None
    source = None
    if recipe.is_base_calibrated:
        assert recipe.quantization is not None
        if not is_resumed:
            write_calibrated_base(recipe.model, recipe.quantization, calibration, run.integers_path)
        source = str(run.integers_path)
        refuse_moved(recipe.model.base_model, None, source, run.path)
    if init == "pissa":
        source = str(run.residual_path)
        if not is_resumed:
            values = split_principal(recipe.model, recipe.lora, run.residual_path)
    base = load_base(recipe.model, recipe.quantization, source=source)
    model = attach_adapter(base, recipe.lora)
    if init == "loftq" and not is_resumed:
        values = quantization_error_values(model, recipe.model)
    if init == "calibrated" and not is_resumed:
        values = calibrated_values(model, recipe.model, calibration)
    if values is not None:
        set_adapter_values(model, values)
    if experts := experts_in_words(base, recipe.quantization):
        console.note(experts)
    num_trained, num_total = trained_and_all(model)
    console.note(
        f"adapter: {num_trained:,} trained parameters, {num_trained / num_total:.2%} of the model, "
        f"in {dtype_name(next(p.dtype for p in model.parameters() if p.requires_grad))}"
    )
    return model


def _beside(recipe: Recipe) -> str:
    """Effects that the figure leaves out."""
    is_int8 = recipe.quantization is not None and recipe.quantization.is_int8
    return ", beside int8's choice of outlier columns, which depends on the whole batch" if is_int8 else ""


def make_collator(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Collator:
    """Collator of packed rows, which makes flat batches for a kernel that takes the documents' bounds."""
    has_varlen_kernel = recipe.model.attn_implementation.startswith("flash_attention")
    return Collator(tokenizer.pad_token_id, flatten=has_varlen_kernel)


def calibration_batches(recipe: Recipe, rows: PackedRows, collator: Collator) -> list[Batch]:
    """Training rows that the run's seed draws, one a batch, so that none is padded; none where none are needed."""
    if recipe.lora.init_lora_weights != "calibrated" and not recipe.is_base_calibrated:
        return []
    batches: list[Batch] = []
    num_tokens = 0
    for number in random.Random(recipe.training.seed).sample(range(len(rows)), len(rows)):
        batches.append(collator([rows.dataset[number]]))
        num_tokens += batches[-1]["input_ids"].numel()
        if num_tokens >= NUM_CALIBRATION_TOKENS:
            break
    return batches


def setup_trainer(recipe: Recipe, run: RunDirectory, parts: TrainerParts, identity: RunIdentity) -> QloraTrainer:
    """A trainer over packed rows, after the proof that no token sees a later one or another document."""
    model, collator = parts.model, parts.collator
    require_position_ids(model.get_base_model())
    if recipe.training.gradient_checkpointing:
        require_gradient_checkpointing(model.get_base_model())
    with progress("checking that no token sees a later one"):
        check_causal_attention(model, collator)
    if recipe.data.packing:
        with progress("checking that no document sees another"):
            isolation = check_packed_isolation(model, collator)
        report = parts.data.report
        console.note(
            f"packing: {report.num_train:,} documents in {len(parts.data.train):,} rows of "
            f"{recipe.data.max_length:,}, {report.fill:.1%} filled; "
            f"replacing one document moves the next one's logits by {isolation.max_change:.1g}"
            f"{_beside(recipe)}"
        )
    if keeps_experts_packed(recipe.training):
        keep_experts_packed(model)
    if recipe.training.neftune_noise_alpha is not None:
        add_embedding_noise(model, recipe.training.neftune_noise_alpha)
    device = pick_device()
    optimizer = optimizer_on(recipe.training.optim, device)
    if optimizer != recipe.training.optim:
        console.note(f"no GPU: {recipe.training.optim} runs unpaged, as {optimizer}")
    arguments = trainer_arguments(recipe, run, pick_dtype(recipe.model.dtype, device), device)
    if not parts.group.is_main_process:
        arguments.report_to = []
    early_stopping = EarlyStoppingCallback(recipe.training, run.metrics_path)
    checkpoint_id = checkpoint_identity(recipe, identity)
    saving = Saving(run, recipe.training.save_total_limit, checkpoint_id, early_stopping)
    trainer = QloraTrainer(parts, arguments, saving, recipe.lora.loraplus_lr_ratio)
    refuse_in_words(trainer.callback_handler.callbacks)
    return trainer
