"""Tokenizer, processor, code and licence of a base, copied with a model that is made of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from qlora_cli.constants import MERGE_RECORD
from qlora_cli.model.fingerprint import WEIGHT_SUFFIXES

NOT_COPIED = frozenset({MERGE_RECORD, "adapter_config.json", "__pycache__"})

TEMPLATES = "additional_chat_templates"


def copy_other_files(base: Path, folder: Path) -> list[str]:
    """Copy the files of a base but its weights: those beside its config.json, and its further chat templates.

    Returns:
        What was left out, sorted: weights that the index does not name, other folders, and links that lead out of
        the base.
    """
    left_out = []
    for path in sorted(base.iterdir()):
        if path.name.startswith(".") or path.name in NOT_COPIED:
            continue
        is_of_weights = path.suffix in WEIGHT_SUFFIXES or path.name.endswith(".index.json")
        if path.name == TEMPLATES and path.is_dir() and _is_inside(path, base):
            shutil.copytree(path, folder / path.name)
        elif path.is_file() and not is_of_weights and _is_inside(path, base):
            shutil.copyfile(path, folder / path.name)
        elif not is_of_weights or not path.name.startswith(("model", "pytorch_model")):
            left_out.append(path.name)
    return left_out


def _is_inside(path: Path, base: Path) -> bool:
    """Whether a file is the base's own; those of the Hub's cache are links to its `blobs`."""
    real, own = path.resolve(), base.resolve()
    return real.is_relative_to(own) or real.is_relative_to(own.parent.parent / "blobs")
