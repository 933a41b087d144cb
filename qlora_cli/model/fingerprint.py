"""The identity of a base model, read from its files without loading it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from qlora_cli.errors import IdentityError
from qlora_cli.recipe.schema import ModelSection

SAMPLE_BYTES = 4096
SAMPLE_STRIDE = 1024 * 1024


def base_folder(model: ModelSection) -> Path:
    """The local folder with the base's files: itself, or the Hub cache's snapshot.

    Raises:
        IdentityError: if it is not on this machine.
    """
    local = Path(model.base_model)
    if local.is_dir():
        return local
    try:
        return Path(snapshot_download(model.base_model, revision=model.revision, local_files_only=True))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as fault:
        raise IdentityError(
            f"the files of base model '{model.base_model}' are not on this machine",
            hint=f"fetch them with `hf download {model.base_model}`",
        ) from fault


def fingerprint_base(model: ModelSection) -> str:
    """SHA-256 over the base's weights: every file's name, size and 4 KiB out of each MiB.

    Two fine-tunes of one model differ in almost every weight, so a sample tells them apart; a 16 GB base takes
    about 64 MB of reading. Copying or moving the folder does not change it.

    Raises:
        IdentityError: if the folder is not on this machine or holds no safetensors.
    """
    folder = base_folder(model)
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise IdentityError(f"'{folder}' holds no safetensors weights", hint="convert the base model to safetensors")
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for offset in range(0, size, SAMPLE_STRIDE):
                file.seek(offset)
                digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(size - SAMPLE_BYTES, 0))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
