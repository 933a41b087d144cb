"""The commands as functions, for notebooks and programs; the command line calls them too.

Nothing heavy is imported before a function is called. Failures that the caller can act on are raised as `QloraError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from qlora_cli import console
from qlora_cli.calling import AnyPath, called, check_choice, check_range
from qlora_cli.choices import ExportFormat, LoadedAs, MergedDtype, Onto
from qlora_cli.errors import ArgumentError
from qlora_cli.hub import start_asking
from qlora_cli.progress import loading_libraries

if TYPE_CHECKING:
    from qlora_cli.deploy.export import Exported
    from qlora_cli.deploy.record import Merged
    from qlora_cli.serve.chat import ChatSession
    from qlora_cli.serve.generation import Answer
    from qlora_cli.train.result import TrainingResult


@called
def train(
    recipe: AnyPath | Mapping[str, Any],
    *,
    run_dir: AnyPath | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    stop_after: int | None = None,
    force: bool = False,
) -> TrainingResult:
    """Train the adapter that a recipe describes, as `qlora train`.

    Args:
        recipe: the YAML file, or the same keys in a mapping; its paths start at the working directory.
        run_dir: where the run is written; `runs/<name of the recipe>` when None, `runs/recipe` for a mapping without
            a name.
        overrides: `{"training.max_steps": 10}`, or texts as `--set` takes them; laid over the recipe.
        resume: continue from the newest intact checkpoint.
        overwrite: start over; the run that is there is deleted when the new one is started.
        stop_after: return after this many steps, with a checkpoint saved.
        force: train even if memory or disk space looks insufficient.

    Raises:
        QloraError: if the run cannot start or continue, with what to do about it.
        KeyboardInterrupt: after Ctrl-C or a notebook's stop button, once the step is done and a checkpoint is saved.
    """
    check_range("stop_after", stop_after, 1)
    from qlora_cli.train.processes.launch import take_launch
    from qlora_cli.train.processes.monitor import monitored

    launch = take_launch()
    with monitored(launch) as monitor:
        if resume and overwrite:
            raise ArgumentError("--resume and --overwrite exclude each other", hint="leave one of them out")
        from qlora_cli.recipe.mapping import as_texts
        from qlora_cli.recipe.reader import load_recipe
        from qlora_cli.run.directory import RUNS_FOLDER, RunDirectory
        from qlora_cli.train.preflight.at_once import refuse_at_once

        source = recipe if isinstance(recipe, Mapping) else Path(recipe)
        loaded = load_recipe(source, as_texts(overrides), console.note if monitor.is_main_process else lambda _: None)
        run = RunDirectory(RUNS_FOLDER / loaded.name if run_dir is None else Path(run_dir))
        if monitor.is_main_process:
            refuse_at_once(loaded, run, resume=resume, overwrite=overwrite)
        start_asking(loaded.model.base_model)
        with loading_libraries():
            from qlora_cli.train.session import TrainOptions, train_recipe

        options = TrainOptions(resume, overwrite, stop_after, check_memory=True, force=force)
        return replace(train_recipe(loaded, run, options, monitor), rank=launch.rank)


@called
def merge(
    run: AnyPath | None = None,
    *,
    out: AnyPath | None = None,
    onto: Onto = "dequantized",
    base_only: bool = False,
    dtype: MergedDtype = "auto",
    force: bool = False,
    base_model: AnyPath | None = None,
    revision: str | None = None,
    quantization: LoadedAs | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Merged:
    """Fold an adapter into its base model and prove that nothing was lost, as `qlora merge`.

    Args:
        run: run directory or PEFT adapter folder; the latest run when None.
        out: folder for the merged model; `<run>/merged` when None.
        onto: the weights that training saw, the base before quantization, or the one with the lower held-out loss.
        base_only: leave the adapter out.
        dtype: precision of the merged weights; auto keeps that of the base.
        force: replace a model folder that is there.
        base_model, revision, quantization, overrides: of the base, laid over what was saved with the adapter.

    Raises:
        QloraError: if there is nothing to merge, or the merged model is not the trained one; nothing is written then.
        KeyboardInterrupt: after Ctrl-C; nothing is written.
    """
    check_choice("onto", onto, get_args(Onto))
    check_choice("dtype", dtype, get_args(MergedDtype))
    from qlora_cli.run.directory import refuse_absent

    refuse_absent(run)
    with loading_libraries():
        from qlora_cli.deploy.merge import MergeOptions, merge_run
        from qlora_cli.model.tuned import choose_tuned

    with console.library_noise_to(None):
        source = choose_tuned(run, base_model, revision, quantization, overrides)
        return merge_run(source, None if out is None else Path(out), MergeOptions(onto, dtype, force, base_only))


@called
def export(
    run: AnyPath | None = None,
    *,
    out: AnyPath,
    format: ExportFormat = "hf",
    quant: str | None = None,
    group_size: int | None = None,
    max_kl: float | None = None,
    base_quant: str | None = None,
    force: bool = False,
    base_model: AnyPath | None = None,
    revision: str | None = None,
    quantization: LoadedAs | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Exported:
    """Write the tuned model as a folder for other tools, and load it, as `qlora export`.

    Args:
        out: folder to make.
        format: "hf", a folder that plain `transformers` loads, or another of `qlora export --help`.
        quant, group_size: type of the stored numbers, and weights that share a scale; the usual ones when None.
        max_kl: bound on the mean KL in nats per token; without a `quant`, the smallest type within it is taken.
        base_quant: of "gguf-adapter": write the base beside it, in this type.
        run, force, base_model, revision, quantization, overrides: as `merge`.

    Raises:
        QloraError: as `merge`, and if the folder does not load as the same model.
        KeyboardInterrupt: after Ctrl-C; nothing is written.
    """
    check_choice("format", format, get_args(ExportFormat))
    from qlora_cli.run.directory import refuse_absent

    refuse_absent(run)
    with loading_libraries():
        from qlora_cli.deploy.export import export_run
        from qlora_cli.deploy.export_options import ExportOptions
        from qlora_cli.model.tuned import choose_tuned

    with console.library_noise_to(None):
        source = choose_tuned(run, base_model, revision, quantization, overrides)
        return export_run(source, Path(out), ExportOptions(format, quant, group_size, max_kl, base_quant, force))


@called
def generate(
    prompt: str,
    run: AnyPath | None = None,
    *,
    system: str = "",
    base: bool = False,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int | None = None,
    base_model: AnyPath | None = None,
    revision: str | None = None,
    quantization: LoadedAs | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """One answer, as `qlora generate`. The model is loaded for it; `chat` loads once for many questions.

    Args:
        prompt: the user's turn.
        run, system, base, temperature, top_p, max_new_tokens, seed: as `chat`, but the most likely answer by default.
        base_model, revision, quantization, overrides: as `merge`.
        on_text: called with each piece of the answer as soon as it is certain.

    Raises:
        QloraError: if there is no such model, or the prompt fills its context.
        KeyboardInterrupt: after Ctrl-C.
    """
    session = chat(
        run,
        system=system,
        base=base,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        base_model=base_model,
        revision=revision,
        quantization=quantization,
        overrides=overrides,
    )
    with console.library_noise_to(None):
        return session.ask(prompt, on_text)


@called
def chat(
    run: AnyPath | None = None,
    *,
    system: str = "",
    base: bool = False,
    temperature: float = 0.7,
    top_p: float = 1.0,
    max_new_tokens: int = 512,
    seed: int | None = None,
    base_model: AnyPath | None = None,
    revision: str | None = None,
    quantization: LoadedAs | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> ChatSession:
    """Load a model to talk with, as `qlora chat`: `chat().ask("Hello").text`. The turns are remembered.

    Args:
        run: run directory, PEFT adapter folder or model folder; the latest run when None.
        system: system prompt; none when empty.
        base: use the base model, without the adapter.
        temperature: 0 takes the most likely token.
        top_p: sample from the most likely tokens that make up this probability.
        max_new_tokens: longest answer.
        seed: makes sampling repeatable.
        base_model, revision, quantization, overrides: as `merge`.

    Raises:
        QloraError: if there is no such model.
        KeyboardInterrupt: after Ctrl-C. Later on, Ctrl-C ends an answer, and what was said is kept.
    """
    check_range("temperature", temperature, 0)
    check_range("top_p", top_p, 0, 1)
    check_range("max_new_tokens", max_new_tokens, 1)
    check_range("seed", seed, 0)
    from qlora_cli.run.directory import refuse_absent

    refuse_absent(run)
    with loading_libraries():
        from qlora_cli.model.tuned import choose_tuned
        from qlora_cli.serve.chat import ChatSession
        from qlora_cli.serve.generation import SamplingOptions
        from qlora_cli.serve.speaker import load_speaker

    with console.library_noise_to(None):
        options = SamplingOptions(temperature, top_p, max_new_tokens, seed)
        source = choose_tuned(run, base_model, revision, quantization, overrides)
        return ChatSession(load_speaker(source, is_base_wanted=base), options, system)
