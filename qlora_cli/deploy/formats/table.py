"""Formats of `qlora export`: what becomes of a merged model, and what loads it as those will who get it.

To add one: a function that converts, and a line in FORMATS at the end; CONTRIBUTING.md names the other files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel

from qlora_cli.model.towers.auto_class import own_auto_class
from qlora_cli.model.tuned import TunedSource


@dataclass(frozen=True)
class Format:
    """One format of an exported model."""

    convert: Callable[[Path, TunedSource], None]
    """Makes of a merged Hugging Face model folder, in place, one of this format. Tokenizer and chat template stay."""

    load: Callable[[Path, TunedSource], PreTrainedModel]
    """The exported model, read without anything of this project. Its logits are compared with the trained model's."""


def as_it_is(folder: Path, source: TunedSource) -> None:
    """Hugging Face: the merged model needs no change."""


def load_with_transformers(folder: Path, source: TunedSource) -> PreTrainedModel:
    """The model as plain `transformers` loads it: whole, as the class that the base's files are made of."""
    trusted = {"trust_remote_code": source.model.trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **trusted)
    return own_auto_class(config).from_pretrained(folder, **trusted)


FORMATS: dict[str, Format] = {
    "hf": Format(as_it_is, load_with_transformers),
}
