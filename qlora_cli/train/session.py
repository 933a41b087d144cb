"""One training session: from a recipe to an adapter, or from a checkpoint on.

The calls between a recipe and the first `backward()`, in the order in which to read it:

    train/session.py          prepare (rows, identity) -> setup (model, trainer) -> run
    train/setup.py            setup_model, setup_trainer
    train/trainer.py          one optimizer step, drawn at its top
    train/step/microbatch.py  forward and backward of one micro-batch
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from qlora_cli import console, environment, upstream
from qlora_cli.data.prepare import PreparedData, prepare_data
from qlora_cli.data.render.for_data import data_renderer, told_date
from qlora_cli.errors import ResourceError
from qlora_cli.interruption import ECHO_SECONDS
from qlora_cli.model.base import read_config
from qlora_cli.model.device import dtype_name, pick_device, pick_dtype
from qlora_cli.model.prequantized import recipe_on
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.progress import progress
from qlora_cli.recipe.reader import dump_recipe
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.checkpoints import Checkpoint
from qlora_cli.run.claim import claimed
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.disk_errors import refusal_in, resource_error
from qlora_cli.run.files import write_text
from qlora_cli.run.manifest import read_manifest, recorded_date, write_manifest
from qlora_cli.run.origin import origin_of
from qlora_cli.run.replaced_run import restore_or_delete
from qlora_cli.train.callbacks.loss_divergence import LossDivergenceCallback
from qlora_cli.train.callbacks.peak_memory import PeakMemory
from qlora_cli.train.callbacks.progress import ProgressCallback
from qlora_cli.train.callbacks.report_page import ReportPageCallback, page_at_the_end
from qlora_cli.train.callbacks.stop import StopCallback, StopRequest, interruption_as_error
from qlora_cli.train.checkpoint.identity import RunIdentity, environment_info, run_identity
from qlora_cli.train.checkpoint.resume import (
    check_same_identity,
    check_same_number,
    find_checkpoint,
    is_evaluation_missing,
    prepare_run_directory,
)
from qlora_cli.train.preflight.data import check_vocab_and_positions, print_data_summary, save_data_files
from qlora_cli.train.preflight.disk import check_disk_space, required_disk
from qlora_cli.train.preflight.memory import MemoryForecast, forecast_memory, memory_record, out_of_memory_hint
from qlora_cli.train.processes.collectives import ProcessGroup
from qlora_cli.train.processes.monitor import SINGLE_PROCESS, ProcessMonitor
from qlora_cli.train.result import TrainingResult, finalize_run, training_result
from qlora_cli.train.setup import calibration_batches, make_collator, setup_model, setup_trainer
from qlora_cli.train.tracking import prepare_trackers
from qlora_cli.train.trainer import QloraTrainer, TrainerParts


@dataclass(frozen=True)
class TrainOptions:
    """Differences of this session from a plain run from start to end."""

    resume: bool = False
    overwrite: bool = False
    stop_after: int | None = None
    """Optimizer steps to do now; the run can be resumed afterwards."""

    check_memory: bool = False
    """Trace a step first, and refuse what does not fit into the memory."""

    force: bool = False
    """Train even if memory or disk space looks insufficient."""


def train_recipe(
    recipe: Recipe, run: RunDirectory, options: TrainOptions, monitor: ProcessMonitor = SINGLE_PROCESS
) -> TrainingResult:
    """Train as the recipe says, in a directory that nobody else writes to.

    Args:
        options: differences from a plain run.
        monitor: connects the processes that train together; rank 0 writes the run.

    Raises:
        QloraError: of the kind that fits, whenever the run cannot start or continue.
        StoppedBySignal: after a signal, with a checkpoint saved.
    """
    environment.send_no_telemetry()
    upstream.check(upstream.Road.TRAINING)
    run = replace(run, launcher=monitor.launch.command)
    with interruption_as_error(run), console.library_noise_to(None):  # refused before anything is written
        recipe = recipe_on(recipe, read_config(recipe.model))
    claim = claimed(run) if monitor.is_main_process else nullcontext()
    with interruption_as_error(run), claim, interruption_as_error(run):  # inside the claim a replaced run is moved away
        session = _Session(recipe, run, options, monitor)
        forecast = session.forecast()
        checkpoint = session.checkpoint()
        with console.library_noise_to(run.log_path if monitor.is_main_process else None):
            return session.train(checkpoint, forecast)


@dataclass(frozen=True)
class _Prepared:
    """Parts that need no model: tokenizer, token rows, and the identity of the run."""

    tokenizer: PreTrainedTokenizerBase
    data: PreparedData
    identity: RunIdentity


@dataclass(frozen=True)
class _Session:
    """A session of this process: prepare, then set up, then run."""

    recipe: Recipe
    run: RunDirectory
    options: TrainOptions
    monitor: ProcessMonitor

    def forecast(self) -> MemoryForecast:
        """The memory of a step; rank 0 predicts it, and all processes use the same micro-batch size."""
        forecast = MemoryForecast.unknown(self.recipe)
        if self.options.check_memory and self.monitor.is_main_process:
            with console.library_noise_to(None):
                forecast = forecast_memory(
                    self.recipe, num_processes=self.monitor.launch.world_size, force=self.options.force
                )
        size = self.monitor.broadcast_object(lambda: forecast.micro_batch_size)
        return replace(forecast, micro_batch_size=size)

    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to resume from, the same in all processes; None for a start from the beginning."""
        found = self.monitor.broadcast_object(self._find_checkpoint)
        return Checkpoint(Path(found["path"]), found["step"]) if found else None

    def _find_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint as JSON holds it."""
        if not self.options.resume:
            prepare_run_directory(self.run, overwrite=self.options.overwrite)
            return None
        if self.run.is_started:
            check_same_number(self.run, self.monitor.launch.world_size)
        with progress("checking checkpoints"):
            checkpoint = find_checkpoint(self.run, self.recipe)
        return {"path": str(checkpoint.path), "step": checkpoint.step} if checkpoint else None

    def train(self, checkpoint: Checkpoint | None, forecast: MemoryForecast) -> TrainingResult:
        """Prepare, set up and run; write the adapter, or say how to resume."""
        started = time.monotonic()
        prepared = self._prepare()
        if checkpoint is not None:
            check_same_identity(self.run, prepared.identity)
            console.note(f"resuming at step {checkpoint.step} from {checkpoint.path}")
        group = ProcessGroup(self.monitor)
        request = StopRequest(ECHO_SECONDS if group.world_size > 1 else 0)
        bar = self._progress(prepared.data)
        callbacks = self._callbacks(bar, request, group)
        last_page = page_at_the_end(self.run) if group.is_main_process else nullcontext()
        with self._out_of_resources():
            self._connect(group, prepared.data)
            memory = PeakMemory()
            parts = TrainerParts(
                self._setup_model(prepared, group, is_resumed=checkpoint is not None),
                prepared.tokenizer,
                make_collator(self.recipe, prepared.tokenizer),
                prepared.data,
                callbacks,
                group,
                forecast.micro_batch_size,
                request.is_set,
            )
            trainer = setup_trainer(self.recipe, self.run, parts, prepared.identity)
            if not group.is_main_process:
                set_seed((self.recipe.training.seed + group.rank) % 2**32)  # each process draws dropout of its own
            with last_page, request.installed(), closing(bar):
                if group.is_main_process:
                    identity = {"num_processes": group.world_size, **prepared.identity}
                    self._write_start(identity, is_resumed=checkpoint is not None)
                self._run_steps(trainer, checkpoint, group)
                first_step = checkpoint.step if checkpoint else 0
                used = memory_record(forecast, memory.measured(), trainer.micro_batch_size)
                result = training_result(trainer, self.run, first_step, time.monotonic() - started, used)
                finalize_run(result, trainer, request, group)
        return result

    def _prepare(self) -> _Prepared:
        """Tokenizer and token rows; rank 0 makes the rows, the others read them from the cache."""
        recipe, run = self.recipe, self.run
        date = datetime.date.fromisoformat(self.monitor.broadcast_object(lambda: str(self._date())))
        prepare_trackers(recipe.tracking, run)
        tokenizer = load_tokenizer(recipe.model)
        renderer = data_renderer(tokenizer, recipe.data, date)
        tokenizer.chat_template = renderer.template  # saved with the adapter, so that inference prints the same
        with self.monitor.main_process_first():
            data = prepare_data(recipe.data, renderer, recipe.training.seed)
        if self.monitor.is_main_process:
            save_data_files(data, tokenizer, run)
            print_data_summary(data, tokenizer)
        return _Prepared(tokenizer, data, run_identity(recipe, data, tokenizer, renderer.printed_date))

    def _date(self) -> datetime.date:
        """Today, for chat templates that print it: the day a resumed run began with, the recipe's, or the clock's."""
        recorded = recorded_date(self.run) if self.options.resume and self.run.is_started else None
        return recorded or told_date(self.recipe.data)

    def _progress(self, data: PreparedData) -> ProgressCallback:
        def note_length(max_steps: int) -> None:
            write_manifest(self.run, read_manifest(self.run) | {"max_steps": max_steps})

        return ProgressCallback(self.run.metrics_path, data.report.num_tokens, note_length)

    def _callbacks(
        self, bar: ProgressCallback, request: StopRequest, group: ProcessGroup
    ) -> tuple[TrainerCallback, ...]:
        run = self.run
        shown = (bar, LossDivergenceCallback(run.metrics_path), ReportPageCallback(run))
        return (*(shown if group.is_main_process else ()), StopCallback(request, self.options.stop_after, group))

    def _setup_model(self, prepared: _Prepared, group: ProcessGroup, *, is_resumed: bool) -> PeftModel:
        """The model with its adapter, equal in all processes, after the checks that need it."""
        recipe = self.recipe
        is_int = recipe.quantization is not None and recipe.quantization.is_in_integers
        needs_first = is_int or recipe.lora.init_lora_weights == "pissa"  # rank 0 writes the base that all of them load
        is_filled_later = is_resumed or not group.is_main_process
        collator = make_collator(recipe, prepared.tokenizer)
        rows = [] if is_filled_later else calibration_batches(recipe, prepared.data.train, collator)
        with self.monitor.main_process_first() if needs_first else nullcontext():
            model = setup_model(recipe, self.run, is_resumed=is_filled_later, calibration=rows)
        group.broadcast_parameters(parameter for parameter in model.parameters() if parameter.requires_grad)
        if group.is_main_process:
            check_vocab_and_positions(model, prepared.tokenizer, recipe.model.base_model, prepared.data)
            check_disk_space(required_disk(recipe, model), self.run, force=self.options.force)
        return model

    def _run_steps(self, trainer: QloraTrainer, checkpoint: Checkpoint | None, group: ProcessGroup) -> None:
        """Train, from a checkpoint if there is one; an evaluation that the checkpoint was saved before comes first."""
        if checkpoint is None:
            trainer.train()
            return
        path = checkpoint.path
        is_missing = group.is_main_process and is_evaluation_missing(path, trainer.args, self.run.metrics_path)
        trainer.args.eval_on_start = bool(group.all_reduce_max(is_missing))
        if not trainer.takes_over_finished(path):
            trainer.train(resume_from_checkpoint=str(path))
        elif trainer.args.eval_on_start:
            trainer.evaluate()

    def _write_start(self, identity: dict[str, Any], *, is_resumed: bool) -> None:
        """Record the run; a resumed one keeps its identity, and its recipe has what was allowed to change."""
        run = self.run
        written = read_manifest(run) if is_resumed else {**identity, **environment_info(self.recipe), **origin_of(run)}
        write_manifest(run, {**written, "status": "started"})
        write_text(run.recipe_path, dump_recipe(self.recipe))  # last: a run is started when this is there
        restore_or_delete(run)

    def _connect(self, group: ProcessGroup, data: PreparedData) -> None:
        """Open the connections between processes, and make sure that they see the same."""
        if group.world_size == 1:
            return
        device = pick_device()
        group.init(device)
        group.check_equal("kind of device", device.type)
        group.check_equal("dtype", dtype_name(pick_dtype(self.recipe.model.dtype, device)))
        group.check_equal("data fingerprint", data.fingerprint)
        rows, steps = self.recipe.training.rows_at_once, self.recipe.training.num_passes
        console.note(
            f"{group.world_size} processes on {device.type}: each step takes {rows} rows x {steps} x "
            f"{group.world_size} processes = {rows * steps * group.world_size} rows"
        )

    @contextmanager
    def _out_of_resources(self) -> Iterator[None]:
        """Add a hint when memory or disk runs out; the last intact checkpoint stays.

        Raises:
            ResourceError: in place of torch's and the system's own errors.
        """
        try:
            yield
        except torch.OutOfMemoryError as fault:
            reason = str(fault).splitlines()[0]
            place, hint = str(self.run.path), out_of_memory_hint(self.recipe)
            raise ResourceError(f"out of GPU memory: {reason}", place=place, hint=hint) from fault
        except OSError as fault:
            if refusal_in(fault) is None:
                raise
            raise resource_error(self.run, fault) from fault
