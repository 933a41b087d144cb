"""The files of a folder in integers: tensors beside those of the base, index and config.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from qlora_cli.model.integer.quantizer import IntegerConfig

SINGLE = "model.safetensors"


class TensorFiles:
    """Files of tensors in one folder, and which tensor is in which."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, str] = {}

    def write(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write one file."""
        save_file(tensors, self._folder / name, metadata={"format": "pt"})
        self._places |= dict.fromkeys(tensors, name)

    def finish(self) -> None:
        """Write the index, if there is more than one file."""
        if len(set(self._places.values())) > 1:
            write_json(self._folder / f"{SINGLE}.index.json", {"metadata": {}, "weight_map": self._places})


def write_config(folder: Path, bits: int, group_size: int, kept: Iterable[str], *, calibration: str) -> None:
    """Say in the folder's config.json, which is the base's, how its weights are stored.

    Args:
        bits: of a code.
        group_size: -1 for whole rows.
        kept: names of the linear layers that are stored plain.
        calibration: how the codes were chosen.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for place in (config, config.get("text_config") or {}):
        for key in ("quantization_config", "compression_config"):
            place.pop(key, None)
    config["quantization_config"] = IntegerConfig(bits, group_size, sorted(kept), calibration=calibration).to_dict()
    write_json(folder / "config.json", config)


def write_json(path: Path, content: object) -> None:
    """Write a file for people and programs."""
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
