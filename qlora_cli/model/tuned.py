"""A tuned model as it was trained: what eval, merge, chat and generate start from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlora_cli import console
from qlora_cli.calling import check_choice
from qlora_cli.choices import LoadedAs
from qlora_cli.constants import INITS_AGAINST_ROUNDING
from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.model.adapter import load_adapter
from qlora_cli.model.adapter_kind import ADAPTER_CONFIG, AdapterKind, read_adapter_kind
from qlora_cli.model.adapter_record import read_adapter_record, saved_tokenizer, tokenizer_section
from qlora_cli.model.base import load_base
from qlora_cli.model.base_choice import AS_SAVED, BaseChoice
from qlora_cli.model.base_place import placed_base, refuse_changed, refuse_moved, section_without_recipe
from qlora_cli.model.embedding_limits import tokens_without_rows
from qlora_cli.model.fingerprint import fingerprint_base, fingerprint_template, fingerprint_tokenizer
from qlora_cli.model.integer.making import in_integers, stored_base
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.base_files import config_here
from qlora_cli.recipe.mapping import as_texts
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.schema import ModelSection, QuantizationSection, Recipe
from qlora_cli.recipe.stored_rules import as_stored
from qlora_cli.run.directory import RunDirectory, latest_run, no_model_at, run_around
from qlora_cli.run.manifest import read_manifest
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

    integers: str | None = None
    """Folder of the base in integers that the run's own rows decided (`quantization.calibration: rows`)."""

    run: RunDirectory | None = None
    recipe: Recipe | None = None

    kind: AdapterKind | None = None
    """What the adapter is; None for a model folder."""

    tokenizer: Path | None = None
    """Folder whose tokenizer and chat template are used; None for the base's own."""

    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of `base`, `tokenizer` and `template` as they were trained; what was not recorded is not there."""

    @property
    def stored_model(self) -> ModelSection:
        """The base, or what was made of it in integers for its run alone."""
        return self.model if self.integers is None else in_integers(self.model, self.integers)

    @cached_property
    def integers_folder(self) -> str | None:
        """Folder that stands in for a base that was trained on in integers, written where it is not there yet."""
        stored = stored_base(self.stored_model, self.quantization)
        return None if stored is self.model else stored.base_model

    @property
    def is_base_apart(self) -> bool:
        """Whether the weights in memory, with the adapter switched off, are not the base: PiSSA and the like."""
        return self.base_source is not None or (self.kind is not None and self.kind.changes_base)

    @property
    def starts_at_zero(self) -> bool:
        """Whether the update was zero before training, as far as is recorded."""
        init = self.recipe.lora.init_lora_weights if self.recipe else None
        return not self.is_base_apart and init not in INITS_AGAINST_ROUNDING


@dataclass(frozen=True)
class Tuned:
    """A loaded model with its tokenizer; `model` is a PeftModel where there is an adapter."""

    model: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: TunedSource


def find_tuned(path: TunedSource | Path | None, choice: BaseChoice = AS_SAVED) -> TunedSource:
    """The tuned model at `path`: a run directory (the latest run when None), a PEFT adapter or a model folder.

    Whatever leads to an adapter of a run (its folder, `.` inside it, a link) gives what the run gives. A copy of it
    elsewhere has its own tokenizer and chat template, and the record of its base, quantization and fingerprints.

    Args:
        path: what a command was given; what was found already stays.
        choice: options that are laid over what was saved.

    Raises:
        ArgumentError: if it is none of them, or a run that is not finished.
        IdentityError: if files of the adapter are damaged, or the folder of its base is not there.
    """
    if isinstance(path, TunedSource):
        return path
    folder = latest_run().path if path is None else path.expanduser()
    if path is None:
        console.note(f"the latest run is {folder}")
    source = _chosen(_found(folder), choice)
    if source.adapter is not None:
        owner = source.run.path if source.run else source.folder
        refuse_moved(source.model.base_model, source.base_source, source.integers, owner)
    return source


def choose_tuned(
    path: str | os.PathLike[str] | None,
    base_model: str | os.PathLike[str] | None,
    revision: str | None,
    quantization: LoadedAs | None,
    overrides: Mapping[str, Any] | Sequence[str],
) -> TunedSource:
    """`find_tuned` with the options as commands take them; None and nothing stand for what was saved.

    Raises:
        ArgumentError, RecipeError: also for an option that cannot have its value.
    """
    if quantization is not None:
        check_choice("quantization", quantization, get_args(LoadedAs))
    base = None if base_model is None else os.fspath(base_model)
    choice = BaseChoice(base, revision, quantization, tuple(as_texts(overrides)))
    return find_tuned(None if path is None else Path(path), choice)


def _found(folder: Path) -> TunedSource:
    run = run_around(folder)
    if run is not None:
        return _from_run(folder, run)
    if (folder / ADAPTER_CONFIG).is_file():
        return _from_adapter(folder)
    if (folder / "config.json").is_file():
        return TunedSource(folder, section_without_recipe(str(folder)))
    raise no_model_at(folder)


def _chosen(source: TunedSource, choice: BaseChoice) -> TunedSource:
    if choice == AS_SAVED:
        return source
    model, quantization = choice.apply(source.model, source.quantization)
    if source.run is not None and quantization != source.quantization:
        raise IdentityError(
            f"was trained on a base stored as {_stored_as(source.quantization)}, not {_stored_as(quantization)}",
            place=str(source.run.path),
            hint="leave --quantization out; `qlora merge --onto original` adds the adapter to the unquantized base",
        )
    tokenizer = None if model.chat_template != source.model.chat_template else source.tokenizer
    integers = source.integers if quantization == source.quantization else None
    return replace(source, model=model, quantization=quantization, integers=integers, tokenizer=tokenizer)


def _stored_as(quantization: QuantizationSection | None) -> str:
    return "16 bit" if quantization is None else quantization.kind


def _from_adapter(folder: Path) -> TunedSource:
    """An adapter that lies outside of its run, or that another program made."""
    kind, record = read_adapter_kind(folder), read_adapter_record(folder)
    if record is None:
        model = section_without_recipe(placed_base(kind), kind.revision)
        config = config_here(model.base_model, model.revision) or {}
        stored = as_stored(None, config, dequantize=model.dequantize)
        return TunedSource(folder, model, stored, folder, kind=kind, tokenizer=saved_tokenizer(folder, model))
    return TunedSource(
        folder,
        record.model,
        record.quantization,
        folder,
        str(record.residual) if record.residual else None,
        str(record.integers) if record.integers else None,
        kind=kind,
        tokenizer=saved_tokenizer(folder, record.model),
        fingerprints=record.fingerprints,
    )


def _from_run(folder: Path, run: RunDirectory) -> TunedSource:
    recipe = located(load_recipe(run.recipe_path), run)
    real = folder.resolve()
    is_checkpoint = real.parent == run.checkpoints_path.resolve()
    adapter = run.checkpoints_path / real.name if is_checkpoint else run.adapter_path
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise ArgumentError(
            f"run '{run.path}' is not finished: it has no adapter yet",
            hint=f"finish it with `{run.resume_command}`",
        )
    recorded = {name: values for name, values in read_manifest(run).items() if isinstance(values, dict)}
    revision = recipe.model.revision or recorded.get("base", {}).get("revision")
    model = recipe.model.model_copy(update={"revision": revision})
    fingerprints = {name: values["fingerprint"] for name, values in recorded.items() if "fingerprint" in values}
    tokenizer = saved_tokenizer(run.adapter_path, model)
    if tokenizer is not None and (record := read_adapter_record(tokenizer)) is not None:
        fingerprints["tokenizer"] = record.fingerprints["tokenizer"]  # as the saved one was read back
    return TunedSource(
        folder,
        model,
        recipe.quantization,
        adapter,
        str(run.residual_path) if recipe.lora.init_lora_weights == "pissa" else None,
        str(run.integers_path) if recipe.is_base_calibrated else None,
        run,
        recipe,
        read_adapter_kind(adapter),
        tokenizer,
        fingerprints,
    )


def check_base(source: TunedSource) -> None:
    """Refuse a base whose weights are not those that the adapter was trained on, as far as that was recorded.

    Raises:
        IdentityError: if the fingerprints differ.
    """
    if source.base_source is None and _differs(source, "base", fingerprint_base(source.model)):
        raise IdentityError(
            f"base model '{source.model.base_model}' is not the one that {_owner(source)} was trained on: "
            "its weights have changed",
            hint="bring back the base as it was, or name it with --base-model, or train again on this one",
        )
    refuse_changed(source.integers)


def _differs(source: TunedSource, name: str, fingerprint: str) -> bool:
    return source.fingerprints.get(name, fingerprint) != fingerprint


def _owner(source: TunedSource) -> str:
    return f"run '{source.run.path}'" if source.run else f"the adapter in '{source.adapter}'"


def load_tokenizer_of(source: TunedSource) -> PreTrainedTokenizerBase:
    """The tokenizer and chat template that were saved with the adapter; the base's where none were.

    Raises:
        IdentityError: if they are not those that the adapter was trained with.
    """
    section = source.model if source.tokenizer is None else tokenizer_section(source.model, source.tokenizer)
    tokenizer = load_tokenizer(section)
    place = section.base_model
    if _differs(source, "tokenizer", fingerprint_tokenizer(tokenizer)):
        raise IdentityError(
            f"the tokenizer is not the one that {_owner(source)} was trained with: it has changed",
            place=place,
            hint="bring back its files as they were, or train again with this one",
        )
    if tokenizer.chat_template and _differs(source, "template", fingerprint_template(tokenizer)):
        raise IdentityError(
            f"the chat template is not the one that {_owner(source)} was trained with: it has changed",
            place=source.model.chat_template or place if source.tokenizer is None else place,
            hint="bring back the template as it was, or train again with this one",
        )
    return tokenizer


def load_tuned(found: TunedSource | Path | None) -> Tuned:
    """Load what `find_tuned` has found or finds, computing as in training, in eval mode.

    A command that looks at the source first hands it on: meanwhile another run may have become the latest.

    Raises:
        ArgumentError: as `find_tuned`.
        IdentityError: if the base, the tokenizer or the adapter is not the one that belongs there.
    """
    source = find_tuned(found)
    check_base(source)
    tokenizer = load_tokenizer_of(source)
    base = load_base(source.model, source.quantization, source=source.base_source or source.integers_folder)
    model = base.eval() if source.adapter is None else load_adapter(base, source.adapter)
    if source.adapter is not None and (unknown := tokens_without_rows(model, tokenizer)):
        console.note(
            f"{len(unknown):,} of the tokenizer's tokens have embeddings in neither base nor adapter, such as "
            f"{unknown[0]!r}: texts that hold one are refused"
        )
    return Tuned(model, tokenizer, source)
