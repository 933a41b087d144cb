"""From folders to an engine: one base, loaded once, with every adapter on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import IdentityError
from qlora_cli.model.abilities import find_abilities
from qlora_cli.model.adapter import add_adapter, load_adapter
from qlora_cli.model.adapter_kind import AdapterKind
from qlora_cli.model.adapter_tensors import ADAPTER
from qlora_cli.model.base import load_base
from qlora_cli.model.device import precision_of
from qlora_cli.model.embedding_limits import num_positions
from qlora_cli.model.tuned import TunedSource, check_base, load_tokenizer_of
from qlora_cli.serve.engine.batching import BatchingEngine
from qlora_cli.serve.engine.bounds import Bounds
from qlora_cli.serve.engine.same_base import (
    BY_ITSELF,
    RESERVED,
    Named,
    brings_biases,
    check_names,
    check_one_base,
    check_one_tokenizer,
)
from qlora_cli.serve.engine.scheduler import EngineLimits
from qlora_cli.serve.engine.served_model import ServedModel


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that runs, and what turns conversations into its prompts."""

    engine: BatchingEngine
    renderer: Renderer
    """Its `prompt_ids` is what training saw. For one thread at a time."""

    tokenizer: PreTrainedTokenizerBase
    """Of the base and of all adapters."""

    computed_in: str
    """Precision and kind of device, as `float32 on cpu`."""

    num_together: int
    """Names whose requests are computed in one batch; each of the others has batches of its own."""


def load_engine(sources: Sequence[Named], limits: EngineLimits | None = None) -> LoadedEngine:
    """Load one base with all adapters, and start the worker that answers.

    Args:
        sources: name that requests use -> what `find_tuned` found for it, in order.
        limits: what is taken on at once.

    Raises:
        ArgumentError: if a name is there twice or is the base's, or an adapter's method needs more than a prompt.
        IdentityError: if they do not stand on one base stored alike, or were not trained with one tokenizer and chat
            template; and as `load_tuned`.
        RecipeError: if the base cannot be loaded.
    """
    check_names(sources)
    check_one_base(sources)
    for _, source in sources:
        check_base(source)
    tokenizer = _one_tokenizer(sources)
    model, adapters, has_base = _load_model(sources)
    kinds = {adapters[name]: source.kind for name, source in sources if source.kind is not None}
    known: dict[str, AdapterKind] = {name: kind for name, kind in kinds.items() if name is not None}
    abilities = find_abilities(model, known, has_base=has_base)
    served = ServedModel(model, adapters, abilities)
    renderer = Renderer(tokenizer)
    bounds = Bounds(num_positions(model.config), model.get_input_embeddings().weight.shape[0])
    engine = BatchingEngine(served, tokenizer, renderer.end_of_turn_ids, bounds, limits or EngineLimits())
    num_together = sum(adapter in abilities.mixed for adapter in adapters.values())
    return LoadedEngine(engine, renderer, tokenizer, precision_of(model), num_together)


def _one_tokenizer(sources: Sequence[Named]) -> PreTrainedTokenizerBase:
    first_name, first_source = sources[0]
    first = load_tokenizer_of(first_source)
    for name, source in sources[1:]:
        check_one_tokenizer((first_name, first), (name, load_tokenizer_of(source)))
    return first


def _load_model(sources: Sequence[Named]) -> tuple[PeftModel | PreTrainedModel, dict[str, str | None], bool]:
    """The model, the adapter in PEFT behind each name, and whether the base itself can answer."""
    source = sources[0][1]
    base = load_base(source.model, source.quantization, source=source.base_source or source.integers_folder)
    model: PeftModel | PreTrainedModel = base.eval()
    num_rows = model.get_input_embeddings().weight.shape[0]
    adapters: dict[str, str | None] = {}
    for name, source in sources:
        adapters[name] = None
        if source.adapter is None:
            continue
        _refuse_other_vocabulary(name, source, num_rows, is_alone=len(sources) == 1)
        if isinstance(model, PeftModel):
            adapters[name] = own_name = f"served_{len(adapters):04d}"
            with _beside(name, sources[0][0]):
                add_adapter(model, source.adapter, own_name)
        else:
            adapters[name] = ADAPTER
            model = load_adapter(model, source.adapter)
    is_resized = model.get_input_embeddings().weight.shape[0] != num_rows
    has_base = not is_resized and not any(_is_base_apart(source) for _, source in sources)
    if has_base:
        adapters[RESERVED] = None
    return model, adapters, has_base


@contextmanager
def _beside(name: str, first: str) -> Iterator[None]:
    """Say of an adapter that PEFT does not put beside others that it can be served by itself."""
    try:
        yield
    except IdentityError as fault:
        text = fault.problems[0].text
        raise IdentityError(f"'{name}' cannot stand beside '{first}' on one base: {text}", hint=BY_ITSELF) from fault


def _is_base_apart(source: TunedSource) -> bool:
    return source.is_base_apart or (source.kind is not None and brings_biases(source.kind))


def _refuse_other_vocabulary(name: str, source: TunedSource, num_rows: int, *, is_alone: bool) -> None:
    kind = source.kind
    if is_alone or kind is None:
        return
    num_wanted = max(kind.vocabulary or num_rows, kind.last_trained_token + 1)
    if num_wanted != num_rows:
        raise IdentityError(
            f"'{name}' has embeddings for {num_wanted:,} tokens, and the base that it would share for {num_rows:,}",
            hint=BY_ITSELF,
        )
