"""Bases whose weights are stored quantized: what they are, and what that makes of the recipe's `quantization`."""

from __future__ import annotations

from pathlib import Path

from qlora_cli.recipe.stored_weights import StoredWeights, stored_weights
from qlora_cli.run.files import read_json_object


def stored_in(folder: Path) -> StoredWeights | None:
    """The form of the weights of a model folder; None where they are plain.

    Raises:
        IdentityError: if its config.json is missing or damaged.
    """
    return stored_weights(read_json_object(folder / "config.json", hint="download the base model again"))
