"""qlora_adapter.json: what a finished adapter was trained on, kept beside it, so that a copy of the folder knows it.

PEFT's adapter_config.json has no place for the base's quantization, its precision, or the identity of base, tokenizer
and chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from qlora_cli.constants import ADAPTER_RECORD
from qlora_cli.errors import IdentityError
from qlora_cli.model.fingerprint import fingerprint_template, fingerprint_tokenizer
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.schema import ModelSection, QuantizationSection, Recipe
from qlora_cli.run.files import read_json_object, write_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

HINT = "copy the adapter folder again from its run, or take this file away to use it as any PEFT adapter"


@dataclass(frozen=True)
class AdapterRecord:
    """What an adapter was trained on."""

    model: ModelSection
    quantization: QuantizationSection | None
    residual: Path | None
    """PiSSA's residual, on which the adapter stands."""

    integers: Path | None
    """The base in integers that the run's own rows decided."""

    fingerprints: Mapping[str, str]
    """Of `base`, `tokenizer` and `template`."""


def write_adapter_record(
    folder: Path,
    recipe: Recipe,
    *,
    residual: Path | None,
    integers: Path | None,
    base: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Save the tokenizer beside the adapter, and the record, with the fingerprints that reading it again gives.

    Args:
        folder: of the adapter.
        recipe: as it was trained.
        residual: PiSSA's; None for other inits.
        integers: the run's own base in integers; None where none was made.
        base: section of the manifest.
        tokenizer: with the chat template in force.
    """
    tokenizer.save_pretrained(folder)
    model, name = recipe.model, recipe.model.base_model
    place = str(Path(name).expanduser().absolute()) if Path(name).expanduser().is_dir() else name
    saved = model.model_copy(update={"base_model": place, "revision": base["revision"], "chat_template": None})
    read_back = load_tokenizer(tokenizer_section(saved, folder))
    write_json(
        folder / ADAPTER_RECORD,
        {
            "model": saved.model_dump(mode="json"),
            "quantization": recipe.quantization and recipe.quantization.model_dump(mode="json"),
            "residual": residual and str(residual.absolute()),
            "integers": integers and str(integers.absolute()),
            "fingerprints": {
                "base": base["fingerprint"],
                "tokenizer": fingerprint_tokenizer(read_back),
                "template": fingerprint_template(read_back),
            },
        },
    )


def read_adapter_record(folder: Path) -> AdapterRecord | None:
    """The record in an adapter folder; None where there is none.

    Raises:
        IdentityError: if it is damaged.
    """
    path = folder / ADAPTER_RECORD
    if not path.is_file():
        return None
    values = read_json_object(path, hint=HINT)
    try:
        quantization = values["quantization"]
        return AdapterRecord(
            ModelSection.model_validate(values["model"]),
            None if quantization is None else QuantizationSection.model_validate(quantization),
            Path(values["residual"]) if values["residual"] else None,
            Path(values["integers"]) if values.get("integers") else None,
            {str(name): str(value) for name, value in values["fingerprints"].items()},
        )
    except (LookupError, TypeError, AttributeError, ValidationError) as fault:
        raise IdentityError(
            f"is not as qlora wrote it: {' '.join(str(fault).split())}", place=str(path), hint=HINT
        ) from fault


def saved_tokenizer(folder: Path, model: ModelSection) -> Path | None:
    """The folder itself where a tokenizer was saved in it; None where the base's own stands for it.

    A tokenizer that is code of the base's repository is read from there.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    if model.trust_remote_code and (folder / "tokenizer_config.json").is_file():
        settings = read_json_object(folder / "tokenizer_config.json", hint=HINT)
        return None if settings.get("auto_map") else folder
    return folder


def tokenizer_section(model: ModelSection, folder: Path) -> ModelSection:
    """The section that reads the tokenizer, and the chat template with it, from `folder`."""
    return model.model_copy(update={"base_model": str(folder), "revision": None, "chat_template": None})
