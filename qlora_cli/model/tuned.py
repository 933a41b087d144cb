"""A tuned model as it was trained: what eval, merge, chat and generate start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlora_cli import console
from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.model.adapter import load_adapter
from qlora_cli.model.base import load_base
from qlora_cli.model.fingerprint import fingerprint_base
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.base_files import config_here
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.schema import ModelSection, QuantizationSection, Recipe
from qlora_cli.recipe.stored_rules import as_stored
from qlora_cli.run.directory import RunDirectory, latest_run
from qlora_cli.run.files import read_json_object
from qlora_cli.run.manifest import recorded_fingerprint
from qlora_cli.run.origin import located


@dataclass(frozen=True)
class TunedSource:
    """Folder and base of a tuned model, before anything heavy is loaded."""

    folder: Path
    """The folder that the user named: a run directory, an adapter folder or a model folder."""

    model: ModelSection
    """The base model, or the merged model itself."""

    quantization: QuantizationSection | None = None
    adapter: Path | None = None
    """PEFT adapter folder; None for a model folder."""

    base_source: str | None = None
    """Folder that stands in for the base model: PiSSA's residual."""

    run: RunDirectory | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Tuned:
    """A loaded model with its tokenizer; `model` is a PeftModel where there is an adapter."""

    model: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: TunedSource


def find_tuned(path: Path | None) -> TunedSource:
    """The tuned model at `path`: a run directory (the latest run when None), a PEFT adapter or a model folder.

    Raises:
        ArgumentError: if it is none of them, or a run that is not finished.
    """
    folder = latest_run().path if path is None else path
    if path is None:
        console.note(f"the latest run is {folder}")
    run = _run_around(folder)
    if run is not None:
        return _from_run(folder, run)
    if (folder / "adapter_config.json").is_file():
        model = _base_of_adapter(folder / "adapter_config.json")
        config = config_here(model.base_model, model.revision)
        return TunedSource(folder, model, None if config is None else as_stored(None, config), adapter=folder)
    if (folder / "config.json").is_file():
        return TunedSource(folder, ModelSection(base_model=str(folder)))
    raise ArgumentError(
        f"'{folder}' is not a run directory, an adapter folder or a model folder",
        hint="`qlora runs` lists the runs; an adapter folder has adapter_config.json, a model folder config.json",
    )


def _base_of_adapter(config_path: Path) -> ModelSection:
    """The base model that an adapter made elsewhere says it belongs to."""
    hint = "write the Hub id or folder of the adapter's base as `base_model_name_or_path` in that file"
    base_model = read_json_object(config_path, hint=hint).get("base_model_name_or_path")
    if not isinstance(base_model, str) or not base_model:
        raise IdentityError(f"names no base model, but {base_model!r}", place=str(config_path), hint=hint)
    return ModelSection(base_model=base_model)


def _run_around(folder: Path) -> RunDirectory | None:
    """The run that `folder` is, or whose adapter or checkpoint it is."""
    for candidate in (folder, folder.parent, folder.parent.parent):
        run = RunDirectory(candidate)
        is_part = folder in (run.path, run.adapter_path) or folder.parent == run.checkpoints_path
        if is_part and run.is_started:
            return run
    return None


def _from_run(folder: Path, run: RunDirectory) -> TunedSource:
    recipe = located(load_recipe(run.recipe_path), run)
    adapter = run.adapter_path if folder == run.path else folder
    if not (adapter / "adapter_config.json").is_file():
        raise ArgumentError(
            f"run '{run.path}' is not finished: it has no adapter yet",
            hint=f"finish it with `{run.resume_command}`",
        )
    residual = str(run.residual_path) if recipe.lora.init_lora_weights == "pissa" else None
    return TunedSource(folder, recipe.model, recipe.quantization, adapter, residual, run, recipe)


def check_base(source: TunedSource) -> None:
    """Refuse a base whose weights are not those that the run was trained on.

    Raises:
        IdentityError: if the fingerprints differ.
    """
    if source.run is None or source.base_source is not None:
        return
    if fingerprint_base(source.model) != recorded_fingerprint(source.run, "base"):
        raise IdentityError(
            f"base model '{source.model.base_model}' is not the one that run '{source.run.path}' was trained on: "
            "its weights have changed",
            hint="bring back the base as it was, or train again on this one",
        )


def load_tuned(found: TunedSource | Path | None) -> Tuned:
    """Load what `find_tuned` has found or finds, computing as in training, in eval mode.

    A command that looks at the source first hands it on: meanwhile another run may have become the latest.

    Raises:
        ArgumentError: as `find_tuned`.
        IdentityError: if the base or the adapter is not the one that belongs there.
    """
    source = found if isinstance(found, TunedSource) else find_tuned(found)
    check_base(source)
    tokenizer = load_tokenizer(source.model)
    base = load_base(source.model, source.quantization, source=source.base_source)
    model = base.eval() if source.adapter is None else load_adapter(base, source.adapter)
    return Tuned(model, tokenizer, source)
