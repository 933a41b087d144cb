"""The model that chat and generate speak with."""

from __future__ import annotations

from pathlib import Path

from qlora_cli.model.base import load_base
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.model.tuned import Tuned, find_tuned, load_tuned


def load_speaker(path: Path | None, *, is_base_wanted: bool) -> Tuned:
    """The tuned model at `path`, or the base model that it stands on, quantized in the same way.

    Args:
        path: run directory, PEFT adapter folder or model folder; the latest run when None.
        is_base_wanted: leave the adapter out.

    Raises:
        ArgumentError, IdentityError, RecipeError: as `load_tuned`.
    """
    if not is_base_wanted:
        return load_tuned(path)
    source = find_tuned(path)
    base = load_base(source.model, source.quantization).eval()
    return Tuned(base, load_tokenizer(source.model), source)
