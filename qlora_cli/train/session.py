"""One training session: from a recipe to an adapter, or from a checkpoint on."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from qlora_cli import compat, console
from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import ArgumentError, ResourceError, StoppedBySignal
from qlora_cli.model.adapter import save_adapter
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.reader import dump_recipe
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.checkpoints import Checkpoint
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.files import replaced_folder, write_text
from qlora_cli.run.manifest import read_manifest, write_manifest
from qlora_cli.run.metrics import read_metrics
from qlora_cli.train.assembly import Ingredients, make_model, make_trainer
from qlora_cli.train.data_notes import keep_rejected_rows, show_data
from qlora_cli.train.ground import circumstances, ground_facts
from qlora_cli.train.progress import ProgressCallback, peak_memory_bytes
from qlora_cli.train.resume import check_same_ground, clear_way, find_resume_point
from qlora_cli.train.signals import StopCallback, StopRequest
from qlora_cli.train.tracking import prepare_trackers
from qlora_cli.train.trainer import QloraTrainer


@dataclass(frozen=True)
class Session:
    """How this session differs from a plain run from start to end."""

    resume: bool = False
    overwrite: bool = False
    stop_after: int | None = None
    """Optimizer steps to do now; the run can be resumed afterwards."""


@dataclass(frozen=True)
class TrainingResult:
    """What a session did."""

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

    @property
    def is_finished(self) -> bool:
        """Whether every step of the recipe is done and the adapter is written."""
        return self.num_steps >= self.max_steps

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON holds it."""
        return asdict(self) | {"run": str(self.run.path), "is_finished": self.is_finished}


def train_recipe(recipe: Recipe, run: RunDirectory, session: Session) -> TrainingResult:
    """Train as the recipe says, in a directory that nobody else writes to.

    Raises:
        QloraError: of the kind that fits, whenever the run cannot start or go on.
        StoppedBySignal: after a signal, with a checkpoint saved.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ArgumentError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and a run trains in one process on one GPU",
            hint="start it with `qlora train`, without torchrun or accelerate launch",
        )
    compat.send_no_telemetry()
    with run.claimed():
        if session.resume:
            checkpoint = find_resume_point(run, recipe)
        else:
            clear_way(run, overwrite=session.overwrite)
            checkpoint = None
        with console.library_noise_to(run.log_path):
            return _train(recipe, run, session, checkpoint)


def _train(recipe: Recipe, run: RunDirectory, session: Session, checkpoint: Checkpoint | None) -> TrainingResult:
    started = time.monotonic()
    prepare_trackers(recipe.tracking, run)
    tokenizer = load_tokenizer(recipe.model)
    renderer = Renderer(tokenizer, train_on=recipe.data.train_on)
    tokenizer.chat_template = renderer.template  # saved with the adapter, so that inference prints the same
    prepared = prepare_data(recipe.data, renderer, recipe.training.seed)
    keep_rejected_rows(prepared, run)
    show_data(prepared, tokenizer)
    facts = ground_facts(recipe, prepared, tokenizer)
    if checkpoint is not None:
        check_same_ground(run, facts)
        console.note(f"resuming at step {checkpoint.step} from {checkpoint.path}")
    request = StopRequest()
    progress = ProgressCallback(run.metrics_path, prepared.report.num_tokens)
    callbacks = (progress, StopCallback(request, session.stop_after))
    with _resource_faults(recipe, run):
        model = make_model(recipe, run, is_resumed=checkpoint is not None)
        trainer = make_trainer(recipe, run, Ingredients(model, tokenizer, prepared, facts, callbacks))
        with request.listening(), closing(progress):
            if checkpoint is None:
                write_text(run.recipe_path, dump_recipe(recipe))
                write_manifest(run, {"status": "started", **facts, **circumstances(recipe)})
                trainer.train()
            elif not trainer.takes_over_finished(checkpoint.path):
                trainer.train(resume_from_checkpoint=str(checkpoint.path))
    first_step = checkpoint.step if checkpoint else 0
    result = _result(trainer, run, first_step, time.monotonic() - started)
    _conclude(result, trainer, request)
    return result


@contextmanager
def _resource_faults(recipe: Recipe, run: RunDirectory) -> Iterator[None]:
    """Say what to do when memory or disk runs out; the last whole checkpoint stays.

    Raises:
        ResourceError: in place of torch's and the system's own errors.
    """
    training = recipe.training
    try:
        yield
    except torch.OutOfMemoryError as fault:
        batch_size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
        smaller = (
            f"--set training.per_device_train_batch_size={batch_size // 2} "
            f"--set training.gradient_accumulation_steps={accumulation * 2}"
            if batch_size > 1
            else f"--set data.max_length={recipe.data.max_length // 2}"
        )
        hint = f"start over with {smaller} and another --run-dir"
        raise ResourceError("out of GPU memory", place=str(run.path), hint=hint) from fault
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"the disk is full: {fault}", place=str(run.path), hint=f"make room, then `{run.resume_command}`"
        ) from fault


def _conclude(result: TrainingResult, trainer: QloraTrainer, request: StopRequest) -> None:
    """Write the finished adapter, or say how to go on."""
    run = result.run
    if result.is_finished:
        with replaced_folder(run.adapter_path) as folder:
            save_adapter(trainer.model, folder)
            trainer.processing_class.save_pretrained(folder)
    status = {"status": "finished" if result.is_finished else "stopped", "num_steps": result.num_steps}
    write_manifest(run, read_manifest(run) | status)
    if request.signal_number is not None and not result.is_finished:
        raise StoppedBySignal(
            f"stopped at step {result.num_steps} of {result.max_steps}; the checkpoint is saved",
            signal_number=request.signal_number,
            hint=f"go on with `{run.resume_command}`",
        )


def _result(trainer: QloraTrainer, run: RunDirectory, first_step: int, seconds: float) -> TrainingResult:
    lines = read_metrics(run.metrics_path)
    losses = [line["loss"] for line in lines if "loss" in line]
    eval_losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return TrainingResult(
        run=run,
        num_steps=trainer.state.global_step,
        num_steps_now=trainer.state.global_step - first_step,
        max_steps=trainer.state.max_steps,
        loss=losses[-1] if losses else None,
        eval_loss=eval_losses[-1] if eval_losses else None,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )
