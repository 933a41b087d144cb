"""Whether several tuned models can be answered from one base: the same weights, stored alike, and the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.model.adapter_kind import AdapterKind
from qlora_cli.model.device import pick_device, pick_dtype
from qlora_cli.model.fingerprint import fingerprint_base, fingerprint_template, fingerprint_tokenizer
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.recipe.stored_weights import grouping

Named = tuple[str, TunedSource]
"""Name that requests use, and what is behind it."""

RESERVED = "base"
"""Name of the base itself."""

BY_ITSELF = "serve each by itself, on a port of its own"


def check_names(sources: Sequence[Named]) -> None:
    """Refuse names that do not tell models apart.

    Raises:
        ArgumentError: if there are none, one is there twice, or one is the base's.
    """
    if not sources:
        raise ArgumentError("there is nothing to serve", hint="name a run: `qlora serve runs/NAME`")
    names = [name for name, _ in sources]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"the name '{name}' is given twice", hint=f"give each its own: {name}-2=FOLDER")
        if name == RESERVED or not name:
            raise ArgumentError(
                f"a model cannot be called '{name}': '{RESERVED}' is the base without an adapter",
                hint="give it another name: NAME=FOLDER",
            )


def check_one_base(sources: Sequence[Named]) -> None:
    """Refuse models that stand on another base than the first one's, or on one that is stored otherwise.

    Raises:
        IdentityError: with both values.
    """
    (first_name, first), *others = sources
    for name, source in others:
        for what, own, wanted in _differences(first, source):
            raise IdentityError(
                f"'{name}' {what} {own}, and '{first_name}' {wanted}: one server has one base", hint=BY_ITSELF
            )
    if len(sources) > 1:
        for name, source in sources:
            if source.kind is not None and (why := _why_alone(source.kind)):
                raise IdentityError(f"'{name}' {why}: no other model can share its base", hint=BY_ITSELF)


def _differences(first: TunedSource, source: TunedSource) -> list[tuple[str, str, str]]:
    """What differs, the value of `source` and that of `first`."""
    found = []
    if not _is_same_base(first.stored_model, source.stored_model) or first.base_source != source.base_source:
        found.append(("stands on", _base_in_words(source), _base_in_words(first)))
    if _stored_as(first) != _stored_as(source):
        found.append(("has its base stored as", _stored_as(source), _stored_as(first)))
    device = pick_device()
    dtypes = [str(pick_dtype(one.model.dtype, device)).removeprefix("torch.") for one in (first, source)]
    if dtypes[0] != dtypes[1]:
        found.append(("computes in", dtypes[1], dtypes[0]))
    return found


def _is_same_base(first: ModelSection, other: ModelSection) -> bool:
    """Whether two sections lead to the same weights; folders may be spelled in several ways, or be copies."""
    if first.dequantize != other.dequantize:
        return False
    if first.base_model == other.base_model and first.revision == other.revision:
        return True
    return fingerprint_base(first) == fingerprint_base(other)


def _base_in_words(source: TunedSource) -> str:
    if source.base_source is not None:
        return f"'{source.base_source}'"
    model = source.stored_model
    revision = f" at revision {model.revision}" if model.revision else ""
    return f"'{Path(model.base_model)}'{revision}"


def _stored_as(source: TunedSource) -> str:
    """The quantization in words that differ where it does."""
    quantization = source.quantization
    if quantization is None:
        return "16 bit"
    details = [grouping(quantization.weights_in_group)] if quantization.is_in_integers else []
    details += ["without double quantization"] if quantization.double_quant is False else []
    details += [f"experts: {str(quantization.experts).lower()}"] if quantization.experts is not None else []
    details += [f"but for {', '.join(quantization.skip_modules)}"] if quantization.skip_modules else []
    return ", ".join([quantization.kind, *details])


def _why_alone(kind: AdapterKind) -> str:
    """Why other adapters cannot stand on the base under an adapter; empty where they can."""
    if kind.changes_base:
        return f"starts from {kind.init}, which takes a part out of the base's weights"
    if brings_biases(kind):
        return "was trained with biases of the base itself"
    if kind.trainable_token_indices and kind.method == "LORA":
        return "trains single rows of the embeddings, which PEFT then asks for in every adapter beside it"
    return ""


def brings_biases(kind: AdapterKind) -> bool:
    """Whether biases of the base are in the adapter's file: PEFT writes them over the base's own."""
    saved = tuple(f".{name}." for name in kind.modules_to_save)
    return any(
        name.endswith(".bias") and ".lora_" not in name and not any(part in name for part in saved)
        for name in kind.shapes
    )


def check_one_tokenizer(first: tuple[str, PreTrainedTokenizerBase], other: tuple[str, PreTrainedTokenizerBase]) -> None:
    """Refuse a tokenizer or chat template that is not the first one's: prompts would not be those of training.

    Raises:
        IdentityError: with both names.
    """
    for what, fingerprint in (("tokenizer", fingerprint_tokenizer), ("chat template", fingerprint_template)):
        if fingerprint(first[1]) != fingerprint(other[1]):
            raise IdentityError(f"'{other[0]}' was trained with another {what} than '{first[0]}'", hint=BY_ITSELF)
