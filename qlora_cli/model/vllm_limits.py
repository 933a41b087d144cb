"""What vLLM takes of a PEFT adapter, so that it is known before an engine is started.

Read in vLLM 0.32: `PEFTHelper` in vllm/lora/peft_helper.py, `parse_fine_tuned_lora_name` and
`is_base_embedding_weights` in vllm/lora/utils.py, `MaxLoRARanks` in vllm/config/lora.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from qlora_cli.model.adapter_kind import FOLDED, AdapterKind, read_adapter_kind, read_settings

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's --max-lora-rank may have. An adapter may have any rank up to it: the rest of its place is zeros,
which add nothing."""

INITS_TAKEN = ("default", "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` with which the base stays as it is, in vLLM and in PEFT alike."""

HEADS_TAKEN = ("classifier", "score")
"""Modules that vLLM takes whole, for models that classify."""

UPDATE = re.compile(r"\.lora_[AB]\.weight$|\.lora_embedding_[AB]$")
"""Names of the tensors that vLLM reads."""

SKIPPED = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""Ends of names that vLLM passes over without a word: it keeps the base's own rows."""


@dataclass(frozen=True)
class VllmRefusal:
    """One reason why vLLM does not serve an adapter as it is trained."""

    text: str
    way_on: str
    """What to type instead."""


def vllm_refusals(folder: Path) -> list[VllmRefusal]:
    """Why vLLM would refuse the adapter in `folder`, or answer with another model; empty where it serves it rightly.

    Raises:
        IdentityError, ArgumentError: as `read_adapter_kind`.
    """
    kind, settings = read_adapter_kind(folder), read_settings(folder)
    way_on = _way_on(kind)
    return [VllmRefusal(text, way_on) for text in _faults(kind, settings)]


def vllm_rank(folders: Iterable[Path]) -> int:
    """The --max-lora-rank that all of the adapters fit into.

    Raises:
        ValueError: if one is above 512, which `vllm_refusals` has said.
    """
    largest = max(max(_ranks(read_settings(folder))) for folder in folders)
    fitting = [rank for rank in MAX_LORA_RANKS if rank >= largest]
    if not fitting:
        raise ValueError(f"vLLM has no place for rank {largest}")
    return fitting[0]


def _faults(kind: AdapterKind, settings: dict[str, Any]) -> Iterator[str]:
    if kind.method != "LORA":
        yield f"it is {kind.title}, and vLLM serves LoRA alone"
        return
    if settings.get("use_dora"):
        yield "it is DoRA (use_dora)"
    if kind.variant is not None:
        yield f"it is {kind.variant}, a variant of LoRA that vLLM does not compute"
    if kind.lora_bias:
        yield "it has biases of LoRA (lora_bias)"
    if settings.get("bias", "none") != "none":
        yield f"it has trained biases of the base (bias: {settings['bias']})"
    if kind.layer_replication:
        yield "its layers are copies of the base's (layer_replication)"
    if kind.init not in INITS_TAKEN and kind.variant is None:
        yield f"PEFT changes the base's weights when it loads it (init_lora_weights: {kind.init})"
    if kind.trainable_token_indices:
        yield "it has single rows of the embeddings (trainable_token_indices)"
    whole = [name for name in kind.modules_to_save if name not in HEADS_TAKEN]
    if whole:
        yield f"it holds whole modules (modules_to_save: {', '.join(whole)})"
    if max(_ranks(settings)) > MAX_LORA_RANKS[-1]:
        yield f"its rank is {max(_ranks(settings))}, and vLLM's largest is {MAX_LORA_RANKS[-1]}"
    if not (whole or kind.lora_bias or kind.trainable_token_indices) and (other := _other_tensors(kind, settings)):
        yield f"its file holds '{other[0]}', which is no update of a weight matrix"


def _ranks(settings: dict[str, Any]) -> list[int]:
    return [settings["r"], *(settings.get("rank_pattern") or {}).values()]


def _other_tensors(kind: AdapterKind, settings: dict[str, Any]) -> list[str]:
    """Tensors that vLLM refuses or passes over, but for those that `_faults` names by their settings.

    The rows of the base's own embeddings that PEFT saves beside an update of them are among them: vLLM passes over
    them, and where the embeddings were resized it would serve others.
    """
    names = [name for name in kind.shapes if not UPDATE.search(name)]
    if settings.get("use_dora"):
        names = [name for name in names if "lora_magnitude_vector" not in name]
    if settings.get("bias", "none") != "none":
        names = [name for name in names if not name.endswith(".bias")]
    return [name for name in names if name.endswith(SKIPPED) or name.split(".")[-2] not in HEADS_TAKEN]


def _way_on(kind: AdapterKind) -> str:
    """A command that works: merged where this project folds it, else as it is."""
    folder = quote(str(kind.folder))
    if kind.method in FOLDED and kind.variant is None and not kind.layer_replication:
        return f"fold it into its base and serve that folder: `qlora merge {folder} --out FOLDER`"
    return f"use it as it is: `qlora chat {folder}`"
