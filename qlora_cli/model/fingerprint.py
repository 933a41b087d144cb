"""The identity of a base model, read from its files without loading it."""

from __future__ import annotations

import hashlib
from math import ceil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from qlora_cli.errors import IdentityError
from qlora_cli.hub import why_offline
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.run.files import read_json_object

SAMPLE_BYTES = 4096
SAMPLE_STRIDE = 1024 * 1024


SAFE_FILES = ["model.safetensors", "model-*.safetensors", "*.json"]
PICKLED_FILES = ["pytorch_model.bin", "pytorch_model-*.bin"]


WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".onnx_data"),
    *(".h5", ".msgpack", ".ot", ".npz", ".tflite", ".mlmodel"),
)
"""Files of weights."""

OTHER_WEIGHTS = [*(f"*{suffix}" for suffix in WEIGHT_SUFFIXES[1:]), "original/*", "consolidated*"]
"""Further copies of the weights that a repository may hold."""


def base_folder(model: ModelSection, *, whole: bool = False) -> Path:
    """The local folder with the base's files: itself, or the Hub cache's snapshot, fetched where it is not there yet.

    Args:
        model: the base.
        whole: fetch all that lies beside the weights too: code, processor, licence.

    Raises:
        IdentityError: if it is not on this machine and cannot be downloaded.
    """
    local = Path(model.base_model)
    if local.is_dir():
        return local
    reason = why_offline()
    files = SAFE_FILES + (PICKLED_FILES if model.allow_pickle else [])
    try:
        with progress(f"asking the Hub for {model.base_model}"):
            return Path(
                snapshot_download(
                    model.base_model,
                    revision=model.revision,
                    allow_patterns=None if whole else files,
                    ignore_patterns=[name for name in OTHER_WEIGHTS if name not in files] if whole else None,
                )
            )
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as fault:
        raise IdentityError(
            f"the files of base model '{model.base_model}' are not on this machine and cannot be fetched"
            + f": {reason}" * bool(reason),
            hint=f"check the name; offline, fetch them beforehand with `hf download {model.base_model}`",
        ) from fault


def resolved_revision(model: ModelSection) -> str | None:
    """The commit of the base's files, where they come from the Hub; else the revision as it is written."""
    folder = base_folder(model)
    return folder.name if folder.parent.name == "snapshots" else model.revision


def has_only_pickles(folder: Path) -> bool:
    """Whether the weights in `folder` are `.bin` files, without safetensors beside them."""
    return any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("model*.safetensors"))


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files that `from_pretrained` reads: those of the index, or the only one.

    A repository may hold the same weights a second time under other names, which must not count.

    Args:
        folder: the base's.
        allow_pickle: take the pickled weights where there are no others.

    Raises:
        IdentityError: if there are none, or the index is damaged or names files elsewhere.
    """
    name = "pytorch_model.bin" if allow_pickle and has_only_pickles(folder) else "model.safetensors"
    index = folder / f"{name}.index.json"
    if index.is_file():
        return [folder / shard for shard in _shards(index)]
    single = folder / name
    if not single.is_file():
        hint = "convert the base model to safetensors"
        if has_only_pickles(folder):
            hint += "; if you trust its .bin files, --set model.allow_pickle=true"
        raise IdentityError(f"'{folder}' holds no model.safetensors", hint=hint)
    return [single]


def _shards(index: Path) -> list[str]:
    """Names of the files in an index, sorted."""
    hint = "download the base model again"
    places = read_json_object(index, hint=hint).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) else set()
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise IdentityError(f"names the file {name!r}, which is not beside it", place=str(index), hint=hint)
        if not (index.parent / name).is_file():
            raise IdentityError(f"names the file '{name}', which is missing", place=str(index), hint=hint)
    if not names:
        raise IdentityError("has no `weight_map` with the files of the weights", place=str(index), hint=hint)
    return sorted(names)


def fingerprint_base(model: ModelSection) -> str:
    """SHA-256 over the base's weights: every file's name, size and 4 KiB out of each MiB.

    Two fine-tunes of one model differ in almost every weight, so a sample distinguishes them; a 16 GB base takes
    about 64 MB of reading. Copying or moving the folder does not change it.

    Raises:
        IdentityError: if the weights cannot be found or downloaded.
    """
    files = {path: path.stat().st_size for path in weight_files(base_folder(model), allow_pickle=model.allow_pickle)}
    num_samples = sum(ceil(size / SAMPLE_STRIDE) for size in files.values())
    digest = hashlib.sha256()
    with progress("hashing the base", num_samples) as phase:
        for path, size in files.items():
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for offset in range(0, size, SAMPLE_STRIDE):
                    file.seek(offset)
                    digest.update(file.read(SAMPLE_BYTES))
                    phase.advance()
                file.seek(max(size - SAMPLE_BYTES, 0))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over vocabulary, merges, added tokens and rules; without padding and truncation, which calls set."""
    vocabulary = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    vocabulary.no_padding()
    vocabulary.no_truncation()
    return hashlib.sha256(vocabulary.to_str().encode()).hexdigest()


def fingerprint_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the text of the chat template; of an empty one where there is none.

    Of several that have names it is the one named default.
    """
    template = tokenizer.chat_template
    text = template.get("default") if isinstance(template, dict) else template
    return hashlib.sha256(str(text or "").encode()).hexdigest()
