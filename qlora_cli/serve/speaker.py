"""The model that answers in chat and generate."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from qlora_cli import console
from qlora_cli.model.base import load_base
from qlora_cli.model.device import precision_of
from qlora_cli.model.tuned import Tuned, TunedSource, check_base, find_tuned, load_tokenizer_of, load_tuned


def describe(speaker: Tuned) -> str:
    """The model that answers.

    Returns:
        A sentence such as "adapter runs/chat/adapter on Qwen/Qwen3-8B".
    """
    source = speaker.source
    if isinstance(speaker.model, PeftModel):
        return f"adapter {source.adapter} on {source.model.base_model}"
    return f"base {source.model.base_model}, without the adapter" if source.adapter else f"model {source.folder}"


def load_speaker(path: TunedSource | Path | None, *, is_base_wanted: bool) -> Tuned:
    """The tuned model at `path`, or the base model that it stands on, quantized in the same way.

    A note says in which precision it computes.

    Args:
        path: run directory, PEFT adapter folder or model folder, or what was found there; the latest run when None.
        is_base_wanted: leave the adapter out.

    Raises:
        ArgumentError, IdentityError, RecipeError: as `load_tuned`.
    """
    if not is_base_wanted:
        speaker = load_tuned(path)
    else:
        source = find_tuned(path)
        check_base(source)
        base = load_base(source.model, source.quantization, source=source.integers_folder).eval()
        speaker = Tuned(base, load_tokenizer_of(source), source)
    console.note(_precision_in_words(speaker))
    return speaker


def _precision_in_words(speaker: Tuned) -> str:
    """In which precision the answers are computed: a merged or exported model is stored in bfloat16 by default."""
    precision = precision_of(speaker.model)
    if precision.startswith("bfloat16"):
        return f"computing in {precision}"
    return f"computing in {precision}; in bfloat16, where `transformers` loads an export, some answers can differ"
