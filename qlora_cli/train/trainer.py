"""`SFTTrainer` with checkpoints that are whole, a resume that is exact, and a loss that is weighed by tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from qlora_cli import compat
from qlora_cli.data.collator import Collator
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.errors import NumericError
from qlora_cli.model.adapter import ADAPTER_WEIGHTS, save_adapter, set_adapter_tensors
from qlora_cli.model.scoring import score_rows
from qlora_cli.run.checkpoints import rotate_checkpoints, staged_checkpoint
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.state import (
    load_optimizer,
    load_state,
    random_state,
    restore_random_state,
    save_optimizer,
    save_state,
)


@dataclass(frozen=True)
class TrainerParts:
    """What a trainer is made of."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    train_rows: PackedRows
    eval_rows: PackedRows
    callbacks: tuple[TrainerCallback, ...]


class QloraTrainer(SFTTrainer):
    """The stock trainer's loop with this project's checkpoints and evaluation.

    Args:
        parts: model, rows and callbacks.
        arguments: from `trainer_arguments`.
        run: where checkpoints go.
        save_total_limit: checkpoints kept.
        seal: facts that every checkpoint's seal repeats, such as the data's fingerprint.
    """

    def __init__(
        self,
        parts: TrainerParts,
        arguments: SFTConfig,
        run: RunDirectory,
        *,
        save_total_limit: int,
        seal: dict[str, Any],
    ) -> None:
        with compat.adapter_dtypes_kept(parts.model):
            super().__init__(
                model=parts.model,
                args=arguments,
                train_dataset=parts.train_rows.dataset,
                eval_dataset=parts.eval_rows.dataset if len(parts.eval_rows) else None,
                processing_class=parts.tokenizer,
                data_collator=parts.collator,
                callbacks=list(parts.callbacks),
            )
        self.remove_callback(PrinterCallback)
        self._run = run
        self._save_total_limit = save_total_limit
        self._seal = seal
        self._saved_step: int | None = None

    def takes_over_finished(self, checkpoint: Path) -> bool:
        """Load a checkpoint whose run has no step left; False, with nothing loaded, where steps are left.

        The stock loop, resumed at `max_steps` in mid-epoch, would do one step too many.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        self._load_from_checkpoint(str(checkpoint))
        return True

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            NumericError: if the loss is not finite; the weights are still those of the last step.
        """
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise self._not_finite("loss", loss.item())
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> float | None:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # With float16 an infinite gradient is an ordinary event: the loss scaler skips that step and scales down.
        if norm is not None and not self.args.fp16 and not torch.isfinite(torch.as_tensor(norm)):
            raise self._not_finite("gradient norm", float(norm))
        return norm

    def _not_finite(self, what: str, value: float) -> NumericError:
        step = self.state.global_step
        return NumericError(
            f"the {what} of step {step + 1} is {value}; stopped before the update",
            place=str(self._run.path),
            hint="lower training.learning_rate, then go on from the last checkpoint with --resume",
        )

    def evaluate(
        self, eval_dataset: None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss per trained token over the eval rows; the stock trainer would average batch means."""
        score = score_rows(self.model, self._eval_batches())
        metrics = {f"{metric_key_prefix}_loss": score.loss, f"{metric_key_prefix}_perplexity": score.perplexity}
        Trainer.log(self, dict(metrics))  # SFTTrainer.log would mix training's running averages into these
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _eval_batches(self) -> Iterator[dict[str, Any]]:
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(self.eval_dataset), size):
            stop = min(start + size, len(self.eval_dataset))
            yield self.data_collator([self.eval_dataset[index] for index in range(start, stop)])

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        if not self.args.should_save or self._saved_step == step:
            return
        with staged_checkpoint(self._run.checkpoints_path, step, self._seal) as folder:
            save_adapter(self.model, folder)
            save_optimizer(folder, self.optimizer)
            save_state(folder, "scheduler", self.lr_scheduler.state_dict())
            save_state(folder, "random", random_state())
            if self.accelerator.scaler is not None:
                save_state(folder, "scaler", self.accelerator.scaler.state_dict())
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        rotate_checkpoints(self._run.checkpoints_path, keep=self._save_total_limit)
        self._saved_step = step

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        set_adapter_tensors(self.model, load_file(Path(resume_from_checkpoint) / ADAPTER_WEIGHTS))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer)
            self.lr_scheduler.load_state_dict(load_state(Path(checkpoint), "scheduler"))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(load_state(Path(checkpoint), "scaler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            restore_random_state(load_state(Path(checkpoint), "random"))
