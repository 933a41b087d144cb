"""The identity of a base model, read from its files without loading it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from qlora_cli.errors import IdentityError
from qlora_cli.recipe.schema import ModelSection

SAMPLE_BYTES = 4096
SAMPLE_STRIDE = 1024 * 1024


WEIGHT_FILES = ["model.safetensors", "model-*.safetensors", "*.json"]


def base_folder(model: ModelSection) -> Path:
    """The local folder with the base's files: itself, or the Hub cache's snapshot, fetched where it is not there yet.

    Raises:
        IdentityError: if it is neither on this machine nor to be had.
    """
    local = Path(model.base_model)
    if local.is_dir():
        return local
    try:
        return Path(snapshot_download(model.base_model, revision=model.revision, allow_patterns=WEIGHT_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as fault:
        raise IdentityError(
            f"the files of base model '{model.base_model}' are not on this machine and cannot be fetched",
            hint=f"check the name; offline, fetch them beforehand with `hf download {model.base_model}`",
        ) from fault


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `from_pretrained` reads: those of the index, or the only one.

    A repository may hold the same weights a second time under other names, which must not count.

    Raises:
        IdentityError: if there are none.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(folder / name for name in names)
    single = folder / "model.safetensors"
    if not single.is_file():
        raise IdentityError(f"'{folder}' holds no model.safetensors", hint="convert the base model to safetensors")
    return [single]


def fingerprint_base(model: ModelSection) -> str:
    """SHA-256 over the base's weights: every file's name, size and 4 KiB out of each MiB.

    Two fine-tunes of one model differ in almost every weight, so a sample tells them apart; a 16 GB base takes
    about 64 MB of reading. Copying or moving the folder does not change it.

    Raises:
        IdentityError: if the weights are not to be had.
    """
    digest = hashlib.sha256()
    for path in weight_files(base_folder(model)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for offset in range(0, size, SAMPLE_STRIDE):
                file.seek(offset)
                digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(size - SAMPLE_BYTES, 0))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
