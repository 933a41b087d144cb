"""From the recipe's words to the trainer's arguments, each key in one place."""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTConfig

from qlora_cli.errors import RecipeError
from qlora_cli.plan.trace.optimizers import UNPAGED
from qlora_cli.recipe.schema import Recipe, TrainingSection
from qlora_cli.run.directory import RunDirectory


def trainer_arguments(recipe: Recipe, run: RunDirectory, dtype: torch.dtype, device: torch.device) -> SFTConfig:
    """Arguments for `SFTTrainer`, which gets token rows and leaves checkpoints to this project.

    Args:
        dtype: what the model computes in; float32 adapters compute in it through autocast.

    Raises:
        RecipeError: for adapters in float16.
    """
    training = recipe.training
    bf16, fp16 = _autocast(recipe.lora.autocast_adapter_dtype, dtype)
    arguments = SFTConfig(
        output_dir=str(run.checkpoints_path),
        run_name=recipe.name,
        **_optimization(training, device),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.rows_at_once,
        per_device_eval_batch_size=recipe.eval.per_device_eval_batch_size,
        gradient_accumulation_steps=training.num_passes,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        activation_offloading=_offloading(training.activation_offloading, device),
        bf16=bf16,
        fp16=fp16,
        use_cpu=device.type == "cpu",
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=training.logging_steps,
        router_aux_loss_coef=0.0,  # a mean over a pass, so that a step done in more passes would be another one
        logging_nan_inf_filter=False,  # it would write an average in place of a loss that is not finite
        eval_strategy=_eval_strategy(recipe),
        eval_steps=recipe.eval.eval_steps,
        save_strategy=training.save_strategy,
        save_steps=training.save_steps or 500,
        report_to=list(recipe.tracking.report_to) or "none",
        project=recipe.tracking.project or "qlora",
        max_length=None,
        packing=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
    )
    return _on_one_gpu(arguments)


def _optimization(training: TrainingSection, device: torch.device) -> dict[str, Any]:
    """The optimizer, its schedule and what is done to gradients before an update."""
    return {
        "optim": optimizer_on(training.optim, device),
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_ratio,  # transformers 5 reads a number below 1 as a share of all steps
        "max_grad_norm": training.max_grad_norm,
    }


def _eval_strategy(recipe: Recipe) -> str:
    """The recipe's strategy; every epoch where it names none and holds rows out."""
    has_eval = recipe.data.eval is not None or recipe.data.eval_fraction is not None
    return recipe.eval.eval_strategy or ("epoch" if has_eval else "no")


def _autocast(has_float32_adapter: bool, dtype: torch.dtype) -> tuple[bool, bool]:
    """Whether float32 adapters compute in bfloat16, and whether in float16, by autocast."""
    if dtype is torch.float16 and not has_float32_adapter:
        raise RecipeError(
            "lora.autocast_adapter_dtype is false, but the model computes in float16, whose loss scaler needs "
            "float32 adapters",
            hint="--set lora.autocast_adapter_dtype=true",
        )
    return has_float32_adapter and dtype is torch.bfloat16, has_float32_adapter and dtype is torch.float16


def _offloading(is_asked_for: bool, device: torch.device) -> bool:
    """Whether activations go to host memory, where they are not already."""
    if is_asked_for and device.type == "cpu":
        raise RecipeError(
            "training.activation_offloading is true, but there is no GPU whose memory it would save",
            hint="--set training.activation_offloading=false",
        )
    return is_asked_for


def _on_one_gpu(arguments: SFTConfig) -> SFTConfig:
    """With several GPUs in sight the trainer would wrap the model in DataParallel; the model is on one of them."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def optimizer_on(name: str, device: torch.device) -> str:
    """The optimizer that runs on `device`: paged ones need GPU memory to page out of.

    >>> optimizer_on("paged_adamw_8bit", torch.device("cpu"))
    'adamw_8bit'
    """
    return UNPAGED.get(name, name) if device.type == "cpu" else name
