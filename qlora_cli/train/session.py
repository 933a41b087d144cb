"""One training session: from a recipe to an adapter, or from a checkpoint on."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from qlora_cli import console, environment, upstream
from qlora_cli.data.prepare import PreparedData, prepare_data
from qlora_cli.data.render.for_data import data_renderer, told_date
from qlora_cli.errors import ResourceError
from qlora_cli.interruption import ECHO_SECONDS
from qlora_cli.model.device import dtype_name, pick_device, pick_dtype
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.progress import progress
from qlora_cli.recipe.reader import dump_recipe
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.checkpoints import Checkpoint
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.earlier import settle
from qlora_cli.run.files import write_text
from qlora_cli.run.manifest import read_manifest, recorded_date, write_manifest
from qlora_cli.run.origin import origin_of
from qlora_cli.run.storage import refusal_in, resource_error
from qlora_cli.train.assembly import Ingredients, make_model, make_trainer
from qlora_cli.train.data_notes import check_reach, keep_rejected_rows, show_data
from qlora_cli.train.ending import TrainingResult, conclude, result_of
from qlora_cli.train.ground import circumstances, ground_facts
from qlora_cli.train.loss_level import LossWatch
from qlora_cli.train.memory import advice
from qlora_cli.train.memory_meter import MemoryMeter
from qlora_cli.train.missed import is_evaluation_missing
from qlora_cli.train.outlook import Outlook, compared, foresee
from qlora_cli.train.progress import ProgressCallback
from qlora_cli.train.ranks import Ranks
from qlora_cli.train.resume import check_same_ground, check_same_number, clear_way, find_resume_point
from qlora_cli.train.signals import StopCallback, StopRequest, explained
from qlora_cli.train.space import check_space, disk_needed
from qlora_cli.train.tracking import prepare_trackers
from qlora_cli.train.trainer import QloraTrainer
from qlora_cli.train.watch import ALONE, Watch


@dataclass(frozen=True)
class Session:
    """How this session differs from a plain run from start to end."""

    resume: bool = False
    overwrite: bool = False
    stop_after: int | None = None
    """Optimizer steps to do now; the run can be resumed afterwards."""

    is_planned: bool = False
    """Trace a step first, and refuse what does not fit into the memory."""

    force: bool = False
    """Go on where memory or disk will not be enough."""


def train_recipe(recipe: Recipe, run: RunDirectory, session: Session, watch: Watch = ALONE) -> TrainingResult:
    """Train as the recipe says, in a directory that nobody else writes to.

    Args:
        watch: ties to the processes that train together; rank 0 writes the run.

    Raises:
        QloraError: of the kind that fits, whenever the run cannot start or go on.
        StoppedBySignal: after a signal, with a checkpoint saved.
    """
    environment.send_no_telemetry()
    upstream.check(upstream.Road.TRAINING)
    run = replace(run, launcher=watch.launch.command)
    claim = run.claimed() if watch.is_first else nullcontext()
    with explained(run), claim, explained(run):  # inside the claim an earlier run may be out of the way
        outlook = _outlook(recipe, session, watch)
        point = watch.from_first(lambda: _starting_point(recipe, run, session, watch.launch.num_ranks))
        checkpoint = Checkpoint(Path(point["path"]), point["step"]) if point else None
        with console.library_noise_to(run.log_path if watch.is_first else None):
            date = watch.from_first(lambda: str(_date(recipe, run, session)))
            beginning = Beginning(session, checkpoint, outlook, datetime.date.fromisoformat(date))
            return _train(recipe, run, beginning, watch)


@dataclass(frozen=True)
class Beginning:
    """From where a session goes on, and what is known of it by then."""

    session: Session
    checkpoint: Checkpoint | None
    outlook: Outlook
    date: datetime.date
    """Today, for chat templates that print it."""


def _date(recipe: Recipe, run: RunDirectory, session: Session) -> datetime.date:
    """The day that a resumed run began with; else the recipe's, or that of the clock."""
    recorded = recorded_date(run) if session.resume and run.is_started else None
    return recorded or told_date(recipe.data)


def _outlook(recipe: Recipe, session: Session, watch: Watch) -> Outlook:
    """What a step will take; rank 0 finds out, and all take as many rows at once."""
    outlook = Outlook.untraced(recipe)
    if session.is_planned and watch.is_first:
        with console.library_noise_to(None):
            outlook = foresee(recipe, num_processes=watch.launch.num_ranks, force=session.force)
    return replace(outlook, rows_at_once=watch.from_first(lambda: outlook.rows_at_once))


def _starting_point(recipe: Recipe, run: RunDirectory, session: Session, num_ranks: int) -> dict[str, Any] | None:
    """The checkpoint to go on from, as JSON holds it; None for a start from the beginning."""
    if not session.resume:
        clear_way(run, overwrite=session.overwrite)
        return None
    if run.is_started:
        check_same_number(run, num_ranks)
    with progress("checking checkpoints"):
        checkpoint = find_resume_point(run, recipe)
    return {"path": str(checkpoint.path), "step": checkpoint.step} if checkpoint else None


def _train(recipe: Recipe, run: RunDirectory, beginning: Beginning, watch: Watch) -> TrainingResult:
    started = time.monotonic()
    session, checkpoint = beginning.session, beginning.checkpoint
    prepare_trackers(recipe.tracking, run)
    tokenizer = load_tokenizer(recipe.model)
    renderer = data_renderer(tokenizer, recipe.data, beginning.date)
    tokenizer.chat_template = renderer.template  # saved with the adapter, so that inference prints the same
    with watch.first_goes_ahead():
        prepared = prepare_data(recipe.data, renderer, recipe.training.seed)
    if watch.is_first:
        keep_rejected_rows(prepared, run)
        show_data(prepared, tokenizer)
    facts = ground_facts(recipe, prepared, tokenizer, renderer.printed_date)
    if checkpoint is not None:
        check_same_ground(run, facts)
        console.note(f"resuming at step {checkpoint.step} from {checkpoint.path}")
    ranks = Ranks(watch)
    request = StopRequest(ECHO_SECONDS if ranks.num > 1 else 0)
    shower = ProgressCallback(
        run.metrics_path,
        prepared.report.num_tokens,
        lambda max_steps: write_manifest(run, read_manifest(run) | {"max_steps": max_steps}),
    )
    shown = (shower, LossWatch(run.metrics_path)) if ranks.is_first else ()
    callbacks = (*shown, StopCallback(request, session.stop_after, ranks))
    with _resource_faults(recipe, run):
        _connect(ranks, recipe, prepared)
        meter = MemoryMeter()
        needs_first = recipe.lora.init_lora_weights == "pissa"  # rank 0 writes the residual that all of them load
        with watch.first_goes_ahead() if needs_first else nullcontext():
            model = make_model(recipe, run, is_resumed=checkpoint is not None or not ranks.is_first)
        ranks.take_from_first(parameter for parameter in model.parameters() if parameter.requires_grad)
        if ranks.is_first:
            check_reach(model, tokenizer, recipe.model.base_model, prepared)
            check_space(disk_needed(recipe, model), run, force=session.force)
        rows_at_once = beginning.outlook.rows_at_once
        ingredients = Ingredients(model, tokenizer, prepared, facts, callbacks, rows_at_once, ranks, request.is_made)
        trainer = make_trainer(recipe, run, ingredients)
        if not ranks.is_first:
            set_seed((recipe.training.seed + ranks.rank) % 2**32)  # each process draws dropout of its own
        with request.listening(), closing(shower):
            if ranks.is_first:
                _write_start(recipe, run, {"num_processes": ranks.num, **facts}, is_resumed=checkpoint is not None)
            _do_steps(trainer, run, checkpoint, ranks)
            first_step = checkpoint.step if checkpoint else 0
            memory = compared(beginning.outlook.needs, meter.measured())
            result = result_of(trainer, run, first_step, time.monotonic() - started, memory)
            conclude(result, trainer, request, ranks)
    return result


def _do_steps(trainer: QloraTrainer, run: RunDirectory, checkpoint: Checkpoint | None, ranks: Ranks) -> None:
    """Train, from a checkpoint on where there is one; what it was saved before, an evaluation, comes first."""
    if checkpoint is None:
        trainer.train()
        return
    is_missing = ranks.is_first and is_evaluation_missing(checkpoint.path, trainer.args, run.metrics_path)
    trainer.args.eval_on_start = bool(ranks.largest(is_missing))
    if not trainer.takes_over_finished(checkpoint.path):
        trainer.train(resume_from_checkpoint=str(checkpoint.path))
    elif trainer.args.eval_on_start:
        trainer.evaluate()


def _write_start(recipe: Recipe, run: RunDirectory, ground: dict[str, Any], *, is_resumed: bool) -> None:
    """What the run is made of; a resumed one keeps its ground, and its recipe has what was allowed to change."""
    written = read_manifest(run) if is_resumed else {**ground, **circumstances(recipe), **origin_of(run)}
    write_manifest(run, {**written, "status": "started"})
    write_text(run.recipe_path, dump_recipe(recipe))  # last: a run is started when this is there
    settle(run)


def _connect(ranks: Ranks, recipe: Recipe, prepared: PreparedData) -> None:
    """Let the processes talk, and make sure that they see the same."""
    if ranks.num == 1:
        return
    device = pick_device()
    ranks.connect(device)
    ranks.check_same("kind of device", device.type)
    ranks.check_same("dtype", dtype_name(pick_dtype(recipe.model.dtype, device)))
    ranks.check_same("data fingerprint", prepared.fingerprint)
    training = recipe.training
    rows, steps = training.rows_at_once, training.num_passes
    console.note(
        f"{ranks.num} processes on {device.type}: each step takes {rows} rows x {steps} x {ranks.num} processes "
        f"= {rows * steps * ranks.num} rows"
    )


@contextmanager
def _resource_faults(recipe: Recipe, run: RunDirectory) -> Iterator[None]:
    """Say what to do when memory or disk runs out; the last whole checkpoint stays.

    Raises:
        ResourceError: in place of torch's and the system's own errors.
    """
    try:
        yield
    except torch.OutOfMemoryError as fault:
        reason = str(fault).splitlines()[0]
        raise ResourceError(f"out of GPU memory: {reason}", place=str(run.path), hint=advice(recipe)) from fault
    except OSError as fault:
        if refusal_in(fault) is None:
            raise
        raise resource_error(run, fault) from fault
