"""What an engine tells of a model folder: its logits, what it generates, and how fast.

Shape letters: L = sequence length (the last positions of a row), V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Questions:
    """What is asked of an engine."""

    rows: Sequence[Sequence[int]]
    """Token ids whose logits are wanted, as `record_logits` takes them."""

    prompts: Sequence[Sequence[int]]
    """Token ids of prompts that are answered with the most likely tokens."""

    end_ids: frozenset[int]
    """Tokens that end an answer."""

    max_new_tokens: int = 64

    trust_remote_code: bool = False
    """The model may bring code of its own, which an engine of Hugging Face's runs."""

    base: Path | None = None
    """Folder with the base in the engine's format, where the folder that is opened holds an adapter alone."""


@dataclass(frozen=True)
class Answers:
    """What the engine said."""

    logits: list[torch.Tensor]
    """float32 [L, V] a row, as `record_logits`. V may be larger than the tokenizer's vocabulary, never smaller."""

    texts: list[list[int]]
    """New tokens of each prompt, the one that ends the answer included."""

    tokens_per_second: float
    """New tokens by the seconds that they took, one prompt after the other."""

    precision: str = ""
    """In what the engine computed, as `float32 on cpu`; empty where it does not tell."""


@dataclass(frozen=True)
class Engine:
    """A program that runs a format."""

    name: str
    """As people know it, such as llama.cpp."""

    install: str
    """Command that installs it."""

    version: Callable[[], str | None]
    """Its version; None where it is not installed."""

    ask: Callable[[Path, Questions], Answers]
    """Open a folder and answer. Runs in a process of its own where the engine cannot live beside torch."""
