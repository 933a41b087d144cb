"""Code that a base brings along, and what it may not lead to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_cli.errors import RecipeError


def refuse_code_from_elsewhere(name: str, settings: Mapping[str, Any]) -> None:
    """Trust in the code of a repository is not trust in what that repository points to.

    Args:
        name: the repository or folder whose code may run.
        settings: its config.json or tokenizer_config.json.

    Raises:
        RecipeError: if they name code of another repository (`other/repo--module.Class`).
    """
    places = settings.get("auto_map") or {}
    for named in places.values() if isinstance(places, Mapping) else [places]:
        for reference in named if isinstance(named, list | tuple) else [named]:
            repository, dashes, _ = str(reference).rpartition("--")
            if dashes and repository != name:
                raise RecipeError(
                    f"model.trust_remote_code does not reach to '{repository}', whose code '{name}' wants to run",
                    hint="download both, put the code beside the weights, and take the other's name out of `auto_map`",
                )
