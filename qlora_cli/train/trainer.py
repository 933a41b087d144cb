"""The trainer: micro-batches that fit, finite numbers, and an eval loss weighted by tokens.

One optimizer step, as it is called between two lines of metrics.jsonl (upper case: transformers' and trl's own):

    TRAINER._inner_training_loop
      TRAINER.get_batch_samples
        _get_num_items_in_batch        labelled tokens of the step, summed over all processes
      training_step                    once for each micro-batch
        MicrobatchRunner.run           in one piece, or in chunks where memory has run out
          _one_pass -> SFTTRAINER.training_step -> compute_loss, BACKWARD
        is_finite(loss)                else NumericError names the rows, before the update
        _sum_gradients                 last micro-batch only: all-reduce over the processes
      _get_grad_norm                   after clipping; not finite: NumericError, before the update
      ReachedCallback                  first step only: no trained tensor without a gradient
      FiniteWeightsCallback            around OPTIMIZER.step: weights and learning rate finite before and after
      _maybe_log_save_evaluate
        ProgressCallback.on_log        the line of metrics.jsonl, the bar
        evaluate -> EvalLoss.compute   mean loss per trained token of the eval rows
        _save_checkpoint               CheckpointingTrainer: staged, hashed, renamed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from trl import SFTConfig

from qlora_cli import compat, upstream
from qlora_cli.data.collator import Collator
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.data.prepare import PreparedData
from qlora_cli.errors import NumericError
from qlora_cli.train.processes.collectives import ProcessGroup
from qlora_cli.train.saving_trainer import CheckpointingTrainer, Saving
from qlora_cli.train.step.eval_loss import EvalLoss
from qlora_cli.train.step.finite import (
    MAX_OVERFLOWS,
    FiniteWeightsCallback,
    MicroBatch,
    NonFiniteDiagnosis,
    StepGradients,
    is_finite,
    largest_value,
)
from qlora_cli.train.step.microbatch import MicrobatchRunner
from qlora_cli.train.step.parameter_groups import parameter_groups
from qlora_cli.train.step.reached import ReachedCallback
from qlora_cli.train.step.row_ids import ROW_IDS, RowIdCollator, dataset_with_row_ids
from qlora_cli.train.step.sampler import PaddedDataset, ShardedSampler


@dataclass(frozen=True)
class TrainerParts:
    """Model, rows and callbacks of one process."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    data: PreparedData
    callbacks: tuple[TrainerCallback, ...] = ()
    group: ProcessGroup = field(default_factory=ProcessGroup)
    """The processes that train together; the stock trainer knows of this one only."""

    micro_batch_size: int | None = None
    """Rows of a forward pass; a batch of more rows is done in several. None for all rows of a batch."""

    is_asked_to_stop: Callable[[], bool] = bool
    """Whether a signal has come to this process."""


class QloraTrainer(CheckpointingTrainer):
    """The stock trainer's loop with this project's checkpoints and evaluation.

    Args:
        parts: model, rows and callbacks.
        arguments: from `trainer_arguments`.
        saving: where checkpoints go.
        loraplus_lr_ratio: learning rate of the adapters' B over that of A; None for one learning rate.
    """

    current_gradient_accumulation_steps: int

    def __init__(
        self, parts: TrainerParts, arguments: SFTConfig, saving: Saving, loraplus_lr_ratio: float | None = None
    ) -> None:
        with compat.adapter_dtypes_kept(parts.model):
            super().__init__(
                saving,
                parts.group,
                model=parts.model,
                args=arguments,
                train_dataset=dataset_with_row_ids(parts.data.train),
                eval_dataset=parts.data.eval.dataset if len(parts.data.eval) else None,
                processing_class=parts.tokenizer,
                data_collator=RowIdCollator(parts.collator),
                callbacks=[
                    ReachedCallback(str(saving.run.path)),
                    FiniteWeightsCallback(str(saving.run.path)),
                    saving.watch,
                    *parts.callbacks,
                ],
            )
        upstream.check_alone(self.accelerator.num_processes)
        self.remove_callback(PrinterCallback)
        self.is_evaluation_cut = False
        """Whether a signal has cut an evaluation short; a resumed run makes up for it."""
        self._parts = parts
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
        self._step_gradients = StepGradients()
        self._num_overflows = 0
        self._microbatches = MicrobatchRunner(
            parts.micro_batch_size or arguments.per_device_train_batch_size, self._batch_of, self._metrics["train"]
        )
        held_out = (parts.data.eval, parts.collator, parts.group, parts.is_asked_to_stop)
        self._eval_loss = EvalLoss(*held_out, batch_size=arguments.per_device_eval_batch_size)

    @property
    def micro_batch_size(self) -> int:
        """Rows of a forward pass now; less than at the start where memory has run out."""
        return self._microbatches.micro_batch_size

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The recipe's optimizer, with LoRA+'s groups where it asks for them."""
        ratio = self._loraplus_lr_ratio
        if self.optimizer is None and ratio is not None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rates = {"learning_rate": self.args.learning_rate, "weight_decay": self.args.weight_decay, "ratio": ratio}
            groups = parameter_groups(self.model, self.get_decay_parameter_names(self.model), **rates)
            self.optimizer_cls_and_kwargs = (kind, {**options, "params": groups})
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's share of the rows."""
        if self._group.world_size == 1:
            return super().get_train_dataloader()
        batch_size, seed = self._train_batch_size, self.args.seed
        sampler = ShardedSampler(
            len(self.train_dataset), batch_size, self._group.rank, self._group.world_size, seed=seed
        )
        rows = PaddedDataset(self.train_dataset)
        return self._get_dataloader(rows, "Training", batch_size, sampler_fn=lambda _: sampler, is_training=True)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | int | None:
        num_items = super()._get_num_items_in_batch(batch_samples, device)
        if self._group.world_size == 1 or num_items is None:
            return num_items
        [total] = self._group.all_reduce_sum([float(num_items)])
        return torch.tensor(int(total), device=device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """A forward and backward pass over one micro-batch, in pieces where memory has run out.

        Raises:
            NumericError: if the loss is not finite; the weights are still those of the last step.
            torch.OutOfMemoryError: if a single row does not fit.
        """
        row_ids = inputs.pop(ROW_IDS)

        def one_pass(batch: dict[str, Any], num_chunks: int) -> torch.Tensor:
            return self._one_pass(model, batch, num_items_in_batch, num_chunks)

        loss = self._microbatches.run(self.state.global_step, inputs, row_ids, one_pass, lambda: model.zero_grad())
        if not is_finite(loss):
            raise self._not_finite("loss", loss.item(), row_ids)
        largest_gradient = largest_value(parameter.grad for parameter in self._trained)
        self._step_gradients.add(self.state.global_step, MicroBatch(row_ids, largest_gradient))
        if self._group.world_size > 1 and self.accelerator.sync_gradients:
            self._sum_gradients()
        return loss

    def _one_pass(
        self, model: nn.Module, batch: dict[str, Any], num_items: torch.Tensor | int | None, num_chunks: int
    ) -> torch.Tensor:
        """The stock training step; for a mixture of experts it takes the mean of the balancing loss over all passes."""
        num_passes = self.current_gradient_accumulation_steps
        self.current_gradient_accumulation_steps = num_passes * num_chunks
        try:
            loss: torch.Tensor = super().training_step(model, batch, num_items)
        finally:
            self.current_gradient_accumulation_steps = num_passes
        return loss

    def _batch_of(self, numbers: Sequence[int]) -> dict[str, Any]:
        rows = PaddedDataset(self.train_dataset)
        return self._parts.collator([rows[number] for number in numbers])

    def _sum_gradients(self) -> None:
        """Add up what the processes have found, unless this one found what no sum could bear."""
        norm = nn.utils.get_total_norm([parameter.grad for parameter in self._trained if parameter.grad is not None])
        if not self.args.fp16:
            self._check_gradient_norm(norm)
        self._group.sum_gradients(self._trained)

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> float | None:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._check_gradient_norm(norm)
        return norm

    def _check_gradient_norm(self, norm: torch.Tensor | float) -> None:
        """Stop before the update; with float16 an overflow is an ordinary event, for which the loss scaler skips it."""
        self._num_overflows = 0 if is_finite(norm) else self._num_overflows + 1
        if self._num_overflows > (MAX_OVERFLOWS if self.args.fp16 else 0):
            raise self._not_finite(
                "gradient norm", float(norm), self._step_gradients.largest_gradient_microbatch().row_ids
            )

    def _not_finite(self, what: str, value: float, row_ids: torch.Tensor) -> NumericError:
        skipped = f" after {MAX_OVERFLOWS} skipped updates in a row" if self.args.fp16 and self._num_overflows else ""
        return self._diagnosis(self._parts.data.train).error(
            f"the {what} of step {self.state.global_step + 1} is {value}{skipped}; stopped before the update",
            row_ids.tolist(),
        )

    def _diagnosis(self, rows: PackedRows) -> NonFiniteDiagnosis:
        return NonFiniteDiagnosis(self._parts.model, self._parts.collator, rows, str(self._run.path))

    def evaluate(
        self, eval_dataset: None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss per trained token over the eval rows; the stock trainer would average batch means.

        A signal cuts it short: the run ends with a checkpoint of the step that was to be evaluated.
        """
        score = self._eval_loss.compute(self.model)
        if score is None:
            self.is_evaluation_cut = self.control.should_save = self.control.should_training_stop = True
            return {}
        if not math.isfinite(score.loss):
            what = f"the eval loss after step {self.state.global_step} is {score.loss}"
            raise self._diagnosis(self._parts.data.eval).error(what, range(len(self._parts.data.eval)))
        metrics = {f"{metric_key_prefix}_loss": score.loss, f"{metric_key_prefix}_perplexity": score.perplexity}
        Trainer.log(self, dict(metrics))  # SFTTrainer.log would mix training's running averages into these
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        if (
            self._group.world_size > 1
            and self.control.should_log
            and self.state.global_step > self._globalstep_last_logged
        ):
            accuracies = self._metrics["train"]["mean_token_accuracy"]
            values = [tr_loss.item(), sum(accuracies), len(accuracies)]
            loss, accuracy, num_batches = self._group.all_reduce_sum(values)
            tr_loss.fill_(loss)
            self._metrics["train"]["mean_token_accuracy"] = [accuracy / max(num_batches, 1)]
        super()._maybe_log_save_evaluate(tr_loss, *arguments, **options)
