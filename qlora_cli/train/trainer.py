"""`SFTTrainer` with checkpoints that are whole, a resume that is exact, and a loss that is weighed by tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from qlora_cli import compat
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.errors import NumericError
from qlora_cli.model.adapter import ADAPTER_WEIGHTS, set_adapter_tensors
from qlora_cli.progress import progress
from qlora_cli.run.checkpoints import rotate_checkpoints, staged_checkpoint
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.contents import Contents, ProcessState, load_process
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
    refuse_broken,
)
from qlora_cli.train.parts import TrainerParts
from qlora_cli.train.rows import ROW_NUMBERS, NumberedCollator, numbered_dataset
from qlora_cli.train.share import FilledRows, ShareSampler
from qlora_cli.train.state import load_optimizer, load_schedule, load_state, restore_random_state


class QloraTrainer(SFTTrainer):
    """The stock trainer's loop with this project's checkpoints and evaluation.

    Args:
        parts: model, rows and callbacks.
        arguments: from `trainer_arguments`.
        run: where checkpoints go.
        save_total_limit: checkpoints kept.
        seal: facts that every checkpoint's seal repeats, such as the data's fingerprint.
    """

    current_gradient_accumulation_steps: int

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
                train_dataset=numbered_dataset(parts.train_rows),
                eval_dataset=parts.eval_rows.dataset if len(parts.eval_rows) else None,
                processing_class=parts.tokenizer,
                data_collator=NumberedCollator(parts.collator),
                callbacks=[UpdateWatch(str(run.path)), *parts.callbacks],
            )
        self.remove_callback(PrinterCallback)
        self._ranks = parts.ranks
        self._run = run
        self._save_total_limit = save_total_limit
        self._seal = seal
        self._saved_step: int | None = None
        self.is_evaluation_cut = False
        """Whether a signal has cut an evaluation short; a resumed run makes up for it."""
        self._parts = parts
        self._trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
        self._step_numbers = StepNumbers()
        self._num_overflows = 0
        self._micro_batches = MicroBatches(parts.rows_at_once, self._batch_of, self._metrics["train"])
        held_out = (parts.eval_rows, parts.collator, parts.ranks, parts.is_asked_to_stop)
        self._held_out = HeldOutRows(*held_out, batch_size=arguments.per_device_eval_batch_size)

    def takes_over_finished(self, checkpoint: Path) -> bool:
        """Load a checkpoint whose run has no step left; False, with nothing loaded, where steps are left.

        The stock loop, resumed at `max_steps` in mid-epoch, would do one step too many.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        *_, state.max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        if state.global_step < state.max_steps:
            return False
        self.state = state
        self._load_from_checkpoint(str(checkpoint))
        if self._ranks.is_first:  # a kill may have come between the last save and this
            rotate_checkpoints(self._run.checkpoints_path, keep=self._save_total_limit)
        return True

    def _init_training_state(self, max_steps: int, *arguments: Any) -> tuple[int, int]:
        """The stock trainer keeps the intervals of the checkpoint's own session, whatever the recipe says by now."""
        place: tuple[int, int] = super()._init_training_state(max_steps, *arguments)
        self.state.compute_steps(self.args, max_steps)
        return place

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

    def check_finite(self) -> None:
        """Make sure that nothing is written that is not finite.

        Raises:
            NumericError: naming a tensor of the adapter or of the optimizer that holds NaN or infinity.
        """
        refuse_broken(self.model, self.optimizer, self.state.global_step, str(self._run.path))

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

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        if not self.args.should_save or self._saved_step == step:
            return
        self.check_finite()
        self._check_same_weights()
        process = ProcessState.of_this_process(self._micro_batches.rows_at_once, self._unlogged())
        packed = self._ranks.collect(process.packed())
        if self._ranks.is_first:
            self._write_checkpoint(step, [ProcessState.unpacked(process) for process in packed])
        self._ranks.barrier()
        self._saved_step = step

    def _check_same_weights(self) -> None:
        """Make sure that what one process saves is what all have.

        Raises:
            IdentityError: if not.
        """
        if self._ranks.num > 1:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            sums = [sum(part.double().sum() for part in (p.abs(), p)).item() for p in trained]
            self._ranks.check_same(f"sum of weights after step {self.state.global_step}", f"{math.fsum(sums)!r}")

    def _write_checkpoint(self, step: int, processes: list[ProcessState]) -> None:
        scaler = self.accelerator.scaler
        contents = Contents(self.model, self.optimizer, self.lr_scheduler, scaler, self.state, processes)
        with progress(f"saving step {step}"), staged_checkpoint(self._run.checkpoints_path, step, self._seal) as folder:
            contents.write(folder)
        rotate_checkpoints(self._run.checkpoints_path, keep=self._save_total_limit)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        set_adapter_tensors(self.model, load_file(Path(resume_from_checkpoint) / ADAPTER_WEIGHTS))
        self._saved_step = TrainerState.load_from_json(f"{resume_from_checkpoint}/{TRAINER_STATE_NAME}").global_step

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer)
            load_schedule(Path(checkpoint), self.lr_scheduler)
            process = load_process(Path(checkpoint), self._ranks.rank, self._ranks.num)
            self._micro_batches.rows_at_once = process.rows_at_once

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(load_state(Path(checkpoint), "scaler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            process = load_process(Path(checkpoint), self._ranks.rank, self._ranks.num)
            restore_random_state(process.random)
            self._take_up(process.unlogged)

    def _unlogged(self) -> dict[str, Any]:
        """Summed loss, and accuracy of each micro-batch, since the step that was logged last."""
        accuracies = list(self._metrics["train"].get("mean_token_accuracy", ()))
        return {"loss": self._tr_loss.item(), "since": self._globalstep_last_logged, "accuracies": accuracies}

    def _take_up(self, unlogged: dict[str, Any]) -> None:
        """Go on with what `_unlogged` gave, so that the next line of metrics.jsonl is that of an undisturbed run."""
        if unlogged:
            self._tr_loss.fill_(unlogged["loss"])
            self._globalstep_last_logged = unlogged["since"]
            if unlogged["accuracies"]:  # trl divides by the length of each list that is there
                self._metrics["train"]["mean_token_accuracy"] = list(unlogged["accuracies"])

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        if self._ranks.num > 1 and self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            accuracies = self._metrics["train"]["mean_token_accuracy"]
            values = [tr_loss.item(), sum(accuracies), len(accuracies)]
            loss, accuracy, num_batches = self._ranks.sums(values)
            tr_loss.fill_(loss)
            self._metrics["train"]["mean_token_accuracy"] = [accuracy / max(num_batches, 1)]
        super()._maybe_log_save_evaluate(tr_loss, *arguments, **options)
