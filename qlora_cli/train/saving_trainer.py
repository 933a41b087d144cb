"""`SFTTrainer` with this project's checkpoints: complete or absent, and a resume that is exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTTrainer

from qlora_cli import console
from qlora_cli.model.adapter import ADAPTER_WEIGHTS, set_adapter_tensors
from qlora_cli.progress import progress
from qlora_cli.run.checkpoints import Checkpoint, checkpoint_path, rotate_checkpoints, staged_checkpoint
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.callbacks.early_stopping import EarlyStop, EarlyStoppingCallback
from qlora_cli.train.checkpoint.state_io import load_optimizer, load_schedule, load_state, restore_random_state
from qlora_cli.train.checkpoint.training_state import ProcessState, TrainingState, load_process
from qlora_cli.train.processes.collectives import ProcessGroup
from qlora_cli.train.step.finite import check_finite_state
from qlora_cli.train.step.microbatch import MicrobatchRunner


@dataclass(frozen=True)
class Saving:
    """Destination of checkpoints, and which of them stay."""

    run: RunDirectory
    save_total_limit: int
    """Number of the newest that stay."""

    seal: dict[str, Any]
    """Facts in every checkpoint's manifest, such as the data's fingerprint."""

    watch: EarlyStoppingCallback
    """Knows the best step."""


class CheckpointingTrainer(SFTTrainer):
    """The half of the trainer that saves and resumes.

    Args:
        saving: where checkpoints go.
        group: the processes that train together.
        options: as `SFTTrainer` takes them.
    """

    _microbatches: MicrobatchRunner

    def __init__(self, saving: Saving, group: ProcessGroup, **options: Any) -> None:
        super().__init__(**options)
        self._run = saving.run
        self._saving = saving
        self._group = group
        self._saved_step: int | None = None

    def takes_over_finished(self, checkpoint: Path) -> bool:
        """Load a checkpoint whose run has no step left; False, with nothing loaded, where steps are left.

        The stock loop, resumed at `max_steps` in mid-epoch, would do one step too many.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        *_, state.max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        is_over = self._saving.watch.early_stop(state.global_step, state.max_steps) is not None
        if state.global_step < state.max_steps and not is_over:
            return False
        self.state = state
        self._load_from_checkpoint(str(checkpoint))
        if self._group.is_main_process:  # a kill may have come between the last save and this
            self._rotate()
        return True

    def _init_training_state(self, max_steps: int, *arguments: Any) -> tuple[int, int]:
        """The stock trainer keeps the intervals of the checkpoint's own session, whatever the recipe says by now."""
        place: tuple[int, int] = super()._init_training_state(max_steps, *arguments)
        self.state.compute_steps(self.args, max_steps)
        return place

    def _run_epoch(self, **place: Any) -> None:
        """One pass over the rows; none where the evaluation that a resumed session begins with has ended the run."""
        if not self.control.should_training_stop:
            super()._run_epoch(**place)

    def early_stop(self) -> EarlyStop | None:
        """Why the run ends here, before its last step; None where it does not."""
        return self._saving.watch.early_stop(self.state.global_step, self.state.max_steps)

    def best_saved_step(self) -> int | None:
        """The step with the lowest eval loss whose adapter is still there; None where the last step counts.

        A checkpoint may be damaged, or may have been deleted before the recipe asked for the best one.
        """
        watch = self._saving.watch
        if watch.kept_step is None:
            return None
        for step in sorted(watch.losses, key=lambda step: (watch.losses[step], step)):
            if step == self.state.global_step:
                return step
            checkpoint = self._checkpoint(step)
            problem = checkpoint.problem(self._saving.seal) if checkpoint.path.is_dir() else "it is not there any more"
            if not problem:
                return step
            console.warn(
                f"the adapter of step {step}, eval loss {watch.losses[step]:.4f}, cannot be taken: "
                f"checkpoint {checkpoint.path}: {problem}"
            )
        return None

    def load_adapter_of(self, step: int) -> None:
        """Put the adapter of a saved step into the model."""
        set_adapter_tensors(self.model, load_file(self._checkpoint(step).path / ADAPTER_WEIGHTS))

    def _checkpoint(self, step: int) -> Checkpoint:
        return Checkpoint(checkpoint_path(self._run.checkpoints_path, step), step)

    def check_finite(self) -> None:
        """Make sure that nothing is written that is not finite.

        Raises:
            NumericError: naming a tensor of the adapter or of the optimizer that holds NaN or infinity.
        """
        check_finite_state(self.model, self.optimizer, self.state.global_step, str(self._run.path))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        if not self.args.should_save or self._saved_step == step:
            return
        self.check_finite()
        self._check_same_weights()
        process = ProcessState.of_this_process(self._microbatches.micro_batch_size, self._unlogged_metrics())
        packed = self._group.all_gather_bytes(process.to_bytes())
        if self._group.is_main_process:
            self._write_checkpoint(step, [ProcessState.from_bytes(process) for process in packed])
        self._group.barrier()
        self._saved_step = step

    def _check_same_weights(self) -> None:
        """Make sure that what one process saves is what all have.

        Raises:
            IdentityError: if not.
        """
        if self._group.world_size > 1:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            sums = [sum(part.double().sum() for part in (p.abs(), p)).item() for p in trained]
            self._group.check_equal(f"sum of weights after step {self.state.global_step}", f"{math.fsum(sums)!r}")

    def _write_checkpoint(self, step: int, processes: list[ProcessState]) -> None:
        scaler = self.accelerator.scaler
        contents = TrainingState(self.model, self.optimizer, self.lr_scheduler, scaler, self.state, processes)
        with (
            progress(f"saving step {step}"),
            staged_checkpoint(self._run.checkpoints_path, step, self._saving.seal) as folder,
        ):
            contents.write(folder)
        self._rotate()

    def _rotate(self) -> None:
        saving = self._saving
        rotate_checkpoints(self._run.checkpoints_path, keep=saving.save_total_limit, best_step=saving.watch.kept_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        set_adapter_tensors(self.model, load_file(Path(resume_from_checkpoint) / ADAPTER_WEIGHTS))
        self._saved_step = TrainerState.load_from_json(f"{resume_from_checkpoint}/{TRAINER_STATE_NAME}").global_step

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer)
            load_schedule(Path(checkpoint), self.lr_scheduler)
            process = load_process(Path(checkpoint), self._group.rank, self._group.world_size)
            self._microbatches.micro_batch_size = process.rows_at_once

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(load_state(Path(checkpoint), "scaler"))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            process = load_process(Path(checkpoint), self._group.rank, self._group.world_size)
            restore_random_state(process.random)
            self._restore_unlogged(process.unlogged)

    def _unlogged_metrics(self) -> dict[str, Any]:
        """Summed loss, and accuracy of each micro-batch, since the step that was logged last."""
        accuracies = list(self._metrics["train"].get("mean_token_accuracy", ()))
        return {"loss": self._tr_loss.item(), "since": self._globalstep_last_logged, "accuracies": accuracies}

    def _restore_unlogged(self, unlogged: dict[str, Any]) -> None:
        """Take over what `_unlogged_metrics` gave: the next line of metrics.jsonl is that of a run without a stop."""
        if unlogged:
            self._tr_loss.fill_(unlogged["loss"])
            self._globalstep_last_logged = unlogged["since"]
            if unlogged["accuracies"]:  # trl divides by the length of each list that is there
                self._metrics["train"]["mean_token_accuracy"] = list(unlogged["accuracies"])
