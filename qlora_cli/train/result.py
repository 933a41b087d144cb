"""End of a session: its results, and the finished adapter or the command to continue."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_cli.errors import StoppedBySignal
from qlora_cli.model.adapter import save_adapter
from qlora_cli.model.adapter_record import write_adapter_record
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.folders import replaced_folder
from qlora_cli.run.manifest import read_manifest, write_manifest
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.callbacks.early_stopping import EarlyStop
from qlora_cli.train.callbacks.peak_memory import peak_memory_bytes
from qlora_cli.train.callbacks.stop import StopRequest
from qlora_cli.train.processes.collectives import ProcessGroup
from qlora_cli.train.trainer import QloraTrainer


@dataclass(frozen=True)
class TrainingResult:
    """Results of a session."""

    run: RunDirectory
    num_steps: int
    """Steps done, those of earlier sessions included."""

    num_steps_now: int
    """Steps done in this session."""

    max_steps: int
    loss: float | None
    eval_loss: float | None
    seconds: float
    peak_memory_bytes: int
    memory: dict[str, Any]
    """Predicted and measured bytes."""

    early_stop: EarlyStop | None = None
    """Why the run has ended before its last step."""

    best_step: int | None = None
    """The step with the lowest eval loss, where the recipe makes that one the adapter."""

    rank: int = 0
    """Of the process that this is returned in, where several train together; rank 0 shows it."""

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end and the adapter is written."""
        return self.num_steps >= self.max_steps or self.early_stop is not None

    @property
    def adapter_step(self) -> int:
        """The step that the finished adapter is of."""
        return self.num_steps if self.best_step is None else self.best_step

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON holds it."""
        adapter_step = self.adapter_step if self.is_finished else None
        values = asdict(self) | {
            "run": str(self.run.path),
            "is_finished": self.is_finished,
            "adapter_step": adapter_step,
        }
        del values["rank"]  # 0 wherever it is shown
        return values


def finalize_run(result: TrainingResult, trainer: QloraTrainer, request: StopRequest, group: ProcessGroup) -> None:
    """Write the finished adapter, or say how to continue.

    Raises:
        StoppedBySignal: if a signal has ended the session before the run's end.
    """
    run = result.run
    if group.is_main_process:
        _write_end(result, trainer)
    signal_number = group.all_reduce_max(request.signal_number or 0)
    group.destroy()
    if signal_number and (not result.is_finished or trainer.is_evaluation_cut):
        raise StoppedBySignal(
            f"stopped at step {result.num_steps} of {result.max_steps}; the checkpoint is saved",
            signal_number=signal_number,
            hint=f"continue with `{run.resume_command}`",
        )


def _write_end(result: TrainingResult, trainer: QloraTrainer) -> None:
    run = result.run
    manifest = {key: value for key, value in read_manifest(run).items() if key not in ("early_stop", "adapter_step")}
    manifest |= {"status": "finished" if result.is_finished else "stopped", "num_steps": result.num_steps}
    if result.is_finished:
        if result.adapter_step != result.num_steps:
            trainer.load_adapter_of(result.adapter_step)
        trainer.check_finite()
        with replaced_folder(run.adapter_path) as folder:
            _save_finished(trainer, run, manifest["base"], folder)
        manifest["adapter_step"] = result.adapter_step
    if result.early_stop is not None:
        manifest["early_stop"] = result.early_stop.as_dict()
    if result.num_steps_now:
        manifest["memory"] = result.memory
        manifest["seconds"] = round(manifest.get("seconds", 0) + result.seconds, 1)
    write_manifest(run, manifest)


def _save_finished(trainer: QloraTrainer, run: RunDirectory, base: dict[str, Any], folder: Path) -> None:
    """Adapter, tokenizer and chat template, and the record of what they belong to."""
    recipe = load_recipe(run.recipe_path)
    residual = run.residual_path if recipe.lora.init_lora_weights == "pissa" else None
    integers = run.integers_path if recipe.is_base_calibrated else None
    save_adapter(trainer.model, folder, revision=None if residual or integers else base["revision"])
    tokenizer = trainer.processing_class
    write_adapter_record(folder, recipe, residual=residual, integers=integers, base=base, tokenizer=tokenizer)


def training_result(
    trainer: QloraTrainer, run: RunDirectory, first_step: int, seconds: float, memory: dict[str, Any]
) -> TrainingResult:
    """Results of the session that has just done its last step.

    Args:
        first_step: steps that were done before it.
        seconds: that it took.
        memory: predicted and measured bytes.
    """
    lines = read_metrics(run.metrics_path)
    losses = [line["loss"] for line in lines if "loss" in line]
    eval_losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    early_stop = trainer.early_stop()
    is_over = early_stop is not None or trainer.state.global_step >= trainer.state.max_steps
    return TrainingResult(
        run=run,
        num_steps=trainer.state.global_step,
        num_steps_now=trainer.state.global_step - first_step,
        max_steps=trainer.state.max_steps,
        loss=losses[-1] if losses else None,
        eval_loss=eval_losses[-1] if eval_losses else None,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        memory=memory,
        early_stop=early_stop,
        best_step=trainer.best_saved_step() if is_over else None,
    )
