"""The trainer: micro-batches that fit, numbers that are finite, and an eval loss that is weighed by tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer
from trl import SFTConfig

from qlora_cli import compat, upstream
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.errors import NumericError
from qlora_cli.train.groups import parameter_groups
from qlora_cli.train.held_out import HeldOutRows
from qlora_cli.train.memory import MicroBatches
from qlora_cli.train.numbers import (
    MAX_OVERFLOWS,
    Culprits,
    MicroBatch,
    StepNumbers,
    UpdateWatch,
    is_finite,
    largest_value,
)
from qlora_cli.train.parts import TrainerParts
from qlora_cli.train.rows import ROW_NUMBERS, NumberedCollator, numbered_dataset
from qlora_cli.train.saving import Saving, SavingTrainer
from qlora_cli.train.share import FilledRows, ShareSampler


class QloraTrainer(SavingTrainer):
    """The stock trainer's loop with this project's checkpoints and evaluation.

    Args:
        parts: model, rows and callbacks.
        arguments: from `trainer_arguments`.
        saving: where checkpoints go.
    """

    current_gradient_accumulation_steps: int

    def __init__(self, parts: TrainerParts, arguments: SFTConfig, saving: Saving) -> None:
        with compat.adapter_dtypes_kept(parts.model):
            super().__init__(
                saving,
                parts.ranks,
                model=parts.model,
                args=arguments,
                train_dataset=numbered_dataset(parts.train_rows),
                eval_dataset=parts.eval_rows.dataset if len(parts.eval_rows) else None,
                processing_class=parts.tokenizer,
                data_collator=NumberedCollator(parts.collator),
                callbacks=[UpdateWatch(str(saving.run.path)), saving.watch, *parts.callbacks],
            )
        upstream.check_alone(self.accelerator.num_processes)
        self.remove_callback(PrinterCallback)
        self.is_evaluation_cut = False
        """Whether a signal has cut an evaluation short; a resumed run makes up for it."""
        self._parts = parts
        self._trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
        self._step_numbers = StepNumbers()
        self._num_overflows = 0
        self._micro_batches = MicroBatches(parts.rows_at_once, self._batch_of, self._metrics["train"])
        held_out = (parts.eval_rows, parts.collator, parts.ranks, parts.is_asked_to_stop)
        self._held_out = HeldOutRows(*held_out, batch_size=arguments.per_device_eval_batch_size)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's optimizer, with LoRA+'s groups where it asks for them."""
        ratio = self._parts.loraplus_lr_ratio
        if self.optimizer is None and ratio is not None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rates = {"learning_rate": self.args.learning_rate, "weight_decay": self.args.weight_decay, "ratio": ratio}
            groups = parameter_groups(self.model, self.get_decay_parameter_names(self.model), **rates)
            self.optimizer_cls_and_kwargs = (kind, {**options, "params": groups})
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's share of the rows."""
        if self._ranks.num == 1:
            return super().get_train_dataloader()
        batch_size, seed = self._train_batch_size, self.args.seed
        sampler = ShareSampler(len(self.train_dataset), batch_size, self._ranks.rank, self._ranks.num, seed=seed)
        rows = FilledRows(self.train_dataset)
        return self._get_dataloader(rows, "Training", batch_size, sampler_fn=lambda _: sampler, is_training=True)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        num_items = super()._get_num_items_in_batch(batch_samples, device)
        if self._ranks.num == 1 or num_items is None:
            return num_items
        [total] = self._ranks.sums([float(num_items)])
        return torch.tensor(int(total), device=device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """A forward and backward pass over one micro-batch, in pieces where memory has run out.

        Raises:
            NumericError: if the loss is not finite; the weights are still those of the last step.
            torch.OutOfMemoryError: if a single row does not fit.
        """
        row_numbers = inputs.pop(ROW_NUMBERS)

        def one_pass(batch: dict[str, Any], num_pieces: int) -> torch.Tensor:
            return self._one_pass(model, batch, num_items_in_batch, num_pieces)

        loss = self._micro_batches.train_on(
            self.state.global_step, inputs, row_numbers, one_pass, lambda: model.zero_grad()
        )
        if not is_finite(loss):
            raise self._not_finite("loss", loss.item(), row_numbers)
        largest_gradient = largest_value(parameter.grad for parameter in self._trained)
        self._step_numbers.add(self.state.global_step, MicroBatch(row_numbers, largest_gradient))
        if self._ranks.num > 1 and self.accelerator.sync_gradients:
            self._sum_gradients()
        return loss

    def _one_pass(
        self, model: nn.Module, batch: dict[str, Any], num_items: torch.Tensor | int | None, num_pieces: int
    ) -> torch.Tensor:
        """The stock training step; for a mixture of experts it takes the mean of the balancing loss over all passes."""
        num_passes = self.current_gradient_accumulation_steps
        self.current_gradient_accumulation_steps = num_passes * num_pieces
        try:
            loss: torch.Tensor = super().training_step(model, batch, num_items)
        finally:
            self.current_gradient_accumulation_steps = num_passes
        return loss

    def _batch_of(self, numbers: Sequence[int]) -> dict[str, Any]:
        rows = FilledRows(self.train_dataset)
        return self._parts.collator([rows[number] for number in numbers])

    def _sum_gradients(self) -> None:
        """Add up what the processes have found, unless this one found what no sum could bear."""
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self._trained if parameter.grad is not None])
        if not self.args.fp16:
            self._check_gradient_norm(norm)
        self._ranks.sum_gradients(self._trained)

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> float | None:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._check_gradient_norm(norm)
        return norm

    def _check_gradient_norm(self, norm: torch.Tensor | float) -> None:
        """Stop before the update; with float16 an overflow is an ordinary event, for which the loss scaler skips it."""
        self._num_overflows = 0 if is_finite(norm) else self._num_overflows + 1
        if self._num_overflows > (MAX_OVERFLOWS if self.args.fp16 else 0):
            raise self._not_finite("gradient norm", float(norm), self._step_numbers.suspect().row_numbers)

    def _not_finite(self, what: str, value: float, row_numbers: torch.Tensor) -> NumericError:
        skipped = f" after {MAX_OVERFLOWS} skipped updates in a row" if self.args.fp16 and self._num_overflows else ""
        return self._culprits(self._parts.train_rows).error(
            f"the {what} of step {self.state.global_step + 1} is {value}{skipped}; stopped before the update",
            row_numbers.tolist(),
        )

    def _culprits(self, rows: PackedRows) -> Culprits:
        return Culprits(self._parts.model, self._parts.collator, rows, str(self._run.path))

    def evaluate(
        self, eval_dataset: None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss per trained token over the eval rows; the stock trainer would average batch means.

        A signal cuts it short: the run ends with a checkpoint of the step that was to be evaluated.
        """
        score = self._held_out.score(self.model)
        if score is None:
            self.is_evaluation_cut = self.control.should_save = self.control.should_training_stop = True
            return {}
        if not math.isfinite(score.loss):
            what = f"the eval loss after step {self.state.global_step} is {score.loss}"
            raise self._culprits(self._parts.eval_rows).error(what, range(len(self._parts.eval_rows)))
        metrics = {f"{metric_key_prefix}_loss": score.loss, f"{metric_key_prefix}_perplexity": score.perplexity}
        Trainer.log(self, dict(metrics))  # SFTTrainer.log would mix training's running averages into these
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        if self._ranks.num > 1 and self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            accuracies = self._metrics["train"]["mean_token_accuracy"]
            values = [tr_loss.item(), sum(accuracies), len(accuracies)]
            loss, accuracy, num_batches = self._ranks.sums(values)
            tr_loss.fill_(loss)
            self._metrics["train"]["mean_token_accuracy"] = [accuracy / max(num_batches, 1)]
        super()._maybe_log_save_evaluate(tr_loss, *arguments, **options)
