"""The models that are measured, and which is compared with which; each is loaded after the one before is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
import transformers
from peft import PeftModel

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.evaluate.kept import key_of
from qlora_cli.evaluate.tasks.task import Subject
from qlora_cli.model.base import load_base
from qlora_cli.model.device import free_memory, precision_of
from qlora_cli.model.fingerprint import fingerprint_base
from qlora_cli.model.tuned import Tuned, TunedSource, load_tokenizer_of, load_tuned
from qlora_cli.run.eval_results import MeasuredModel
from qlora_cli.run.inventory import fingerprint_file
from qlora_cli.run.manifest import recorded_date


@dataclass(frozen=True)
class Entrant:
    """One model to be measured."""

    name: str
    role: str
    """As `MeasuredModel` has it."""

    source: TunedSource
    is_base: bool = False
    """Whether it is the base of the source, without the adapter."""

    @property
    def path(self) -> str:
        """Folder or Hub id."""
        return self.source.model.base_model if self.is_base else str(self.source.folder)


@dataclass(frozen=True)
class Contest:
    """The models in the order in which they are measured, and the pairs that are compared."""

    entrants: list[Entrant]
    pairs: list[tuple[str, str]]
    """Name of a model, and of what it is compared with."""


def arrange(sources: Sequence[TunedSource], against: TunedSource | None) -> Contest:
    """Every source against `against`, or against its own base where that is None.

    A folder without an adapter has no base of its own: it is compared with that of the first source that has one.
    """
    names = _names(sources)
    tuned = [Entrant(name, "tuned", source) for name, source in zip(names, sources, strict=True)]
    if against is not None:
        other = Entrant(_free_name(against.folder.resolve().name, names), "other", against)
        return Contest([other, *tuned], [(entrant.name, other.name) for entrant in tuned])
    bases: dict[str, Entrant] = {}
    entrants: list[Entrant] = []
    own: dict[str, str] = {}
    for entrant in tuned:
        if entrant.source.adapter is not None:
            key = _identity_of_base(entrant.source)
            if key not in bases:
                name = "base" if not bases else f"base of {entrant.name}"
                bases[key] = Entrant(name, "base", entrant.source, is_base=True)
                entrants.append(bases[key])
            own[entrant.name] = bases[key].name
        entrants.append(entrant)
    first = next(iter(bases.values()), None)
    pairs = [(one.name, own.get(one.name) or first.name) for one in tuned if first is not None]
    return Contest(entrants, pairs)


def _names(sources: Sequence[TunedSource]) -> list[str]:
    """`tuned` for one model alone, else the names of their folders, with those above where two are the same."""
    if len(sources) == 1:
        return ["tuned"]
    paths = [source.folder.resolve() for source in sources]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, 1)]


def _free_name(name: str, taken: Sequence[str]) -> str:
    return name if name not in taken and name != "tuned" else f"{name} (against)"


def _identity_of_base(source: TunedSource) -> str:
    """What two bases agree in that give the same figures."""
    stored = _stored(source)
    computed = source.model.model_dump(mode="json", exclude={"base_model", "revision", "chat_template"})
    known = source.fingerprints
    base = known.get("base") or [source.model.base_model, source.model.revision]
    texts = [known["tokenizer"], known.get("template")] if "tokenizer" in known else str(source.tokenizer)
    return key_of(base, stored, sorted(map(str, computed.items())), texts)


def _stored(source: TunedSource) -> str:
    """How a base is stored, and where it lies if its run alone has it."""
    return f"{source.quantization.model_dump_json() if source.quantization else ''}{source.integers or ''}"


def visit(contest: Contest, look: Callable[[Subject, Entrant], None]) -> list[MeasuredModel]:
    """Load one model after the other and hand each to `look`.

    Base and tuned model are the same weights in memory, with the adapter switched off and on. After PiSSA the weights
    in memory are the residual, which is nobody's base: the original base is then loaded by itself.

    Returns:
        The models, with the precision in which they computed.
    """
    seen: list[MeasuredModel] = []
    date = next((recorded_date(one.source.run) for one in contest.entrants if one.source.run), None)

    def show(entrant: Entrant, tuned: Tuned) -> None:
        renderer = Renderer(tuned.tokenizer, date=date)
        look(Subject(entrant.name, tuned, model_key(entrant, tuned), renderer), entrant)
        seen.append(MeasuredModel(entrant.name, entrant.path, entrant.role, precision_of(tuned.model)))

    for _, group in groupby(contest.entrants, key=lambda entrant: id(entrant.source)):
        entrants = list(group)
        source = entrants[0].source
        if entrants[0].is_base and source.is_base_apart:
            _show_base_apart(entrants.pop(0), show)
            free_memory()
        if entrants:
            _show_loaded(entrants, load_tuned(source), show)
        free_memory()
    return seen


def _show_base_apart(entrant: Entrant, show: Callable[[Entrant, Tuned], None]) -> None:
    source = entrant.source
    base = load_base(source.model, source.quantization, source=source.integers_folder).eval()
    show(entrant, Tuned(base, load_tokenizer_of(source), source))


def _show_loaded(entrants: Sequence[Entrant], tuned: Tuned, show: Callable[[Entrant, Tuned], None]) -> None:
    for entrant in entrants:
        if entrant.is_base and isinstance(tuned.model, PeftModel):
            with tuned.model.disable_adapter():
                show(entrant, tuned)
        else:
            show(entrant, tuned)


def model_key(entrant: Entrant, tuned: Tuned) -> str:
    """Identity of a model's weights, and of what computes with them."""
    source = entrant.source
    base = source.fingerprints.get("base") or fingerprint_base(source.model)
    stored = _stored(source)
    adapter = [] if entrant.is_base or source.adapter is None else _adapter_marks(source.adapter)
    versions = [torch.__version__, transformers.__version__]
    return key_of(base, stored, adapter, entrant.is_base, precision_of(tuned.model), versions)


def _adapter_marks(folder: Path) -> list[str]:
    names = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    return [fingerprint_file(folder / name) for name in names if (folder / name).is_file()]
