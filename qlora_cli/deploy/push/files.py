"""The files that are pushed: those on the list for the kind of folder, no link out of it, nothing with a secret."""

from __future__ import annotations

import fnmatch
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_cli.constants import ADAPTER_RECORD, MERGE_RECORD
from qlora_cli.deploy.push.base import PushedBase, last_name
from qlora_cli.deploy.push.folder import AGAIN, Kind, PushedFolder
from qlora_cli.errors import ArgumentError, IdentityError, Problem
from qlora_cli.model.adapter_kind import ADAPTER_CONFIG
from qlora_cli.run.files import read_json_object
from qlora_cli.run.inventory import changed_files
from qlora_cli.secrets import find_secret

CARD = "README.md"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "*.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
LICENCE = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
SETTINGS = ("config.json", "generation_config.json", "*processor_config.json", "*.py", MERGE_RECORD, *LICENCE)
WEIGHTS = ("*.safetensors", "*.gguf")

LISTS: dict[Kind, tuple[str, ...]] = {
    "adapter": (ADAPTER_CONFIG, "adapter_model.safetensors", ADAPTER_RECORD, *TOKENIZER),
    "model": (*SETTINGS, "*.safetensors", "*.safetensors.index.json", *TOKENIZER),
    "mlx": (*SETTINGS, "*.safetensors", "*.safetensors.index.json", *TOKENIZER),
    "gguf": ("*.gguf", "Modelfile", MERGE_RECORD, *LICENCE),
}
"""Kind of folder -> the files of it that are pushed; everything else stays here."""

NEVER = ("optimizer.*", "scheduler.*", "scaler.*", "random*", "rng_state*", "training_args.*")
"""States of training that lie beside weights in folders of other programs."""

BASE_KEYS = {"base_model_name_or_path", "base_model", "_name_or_path", "name_or_path"}
MAX_TEXT_BYTES = 128 * 1024 * 1024
MAX_HEADER_BYTES = 100_000_000
"""What safetensors itself allows."""


@dataclass(frozen=True)
class PushedFile:
    """One file as it will lie in the repository."""

    name: str
    content: Path | bytes
    """The file itself; bytes where something in it was replaced, or for the card."""

    @property
    def num_bytes(self) -> int:
        """Size as it is uploaded."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def collect_files(folder: PushedFolder) -> tuple[list[PushedFile], list[str]]:
    """The files to push without the card, and what else is in the folder and stays here.

    Raises:
        ArgumentError: if a file that is needed is missing or a link out of the folder, or one holds a secret.
        IdentityError: if weights have changed since they were written and proved.
    """
    names, others = _chosen(folder.path, LISTS[folder.kind])
    _refuse_links(folder.path, names)
    _refuse_gaps(folder.path, names)
    if altered := [name for name in changed_files(folder.path) if _matches(name, WEIGHTS)]:
        raise IdentityError(
            "has changed since qlora wrote it, so what is recorded of it may not be true",
            place=str(folder.path / altered[0]),
            hint="make the folder again with `qlora merge --force` or `qlora export --force`",
        )
    files = [PushedFile(name, shareable(folder.path / name, folder.base)) for name in names]
    refuse_secrets(files, folder.path)
    return files, others


def _chosen(folder: Path, patterns: tuple[str, ...]) -> tuple[list[str], list[str]]:
    names, others = [], []
    for path in sorted(folder.iterdir()):
        inside = [path.name]
        if path.is_dir():
            inside = [f"{path.name}/{one.name}" for one in sorted(path.iterdir())]
        wanted = [name for name in inside if _matches(name, patterns) and not _matches(name, NEVER)]
        names += wanted
        if len(wanted) < len(inside) or not inside:
            others.append(f"{path.name}/" if path.is_dir() else path.name)
    return names, [name for name in others if name not in (CARD, ".qlora_files.json")]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def _refuse_links(folder: Path, names: list[str]) -> None:
    root = folder.resolve()
    for name in names:
        real = (folder / name).resolve()
        if not real.is_relative_to(root) or not real.is_file():
            raise ArgumentError(
                "is a link out of the folder" if (folder / name).is_symlink() else "is not a file of the folder",
                place=str(folder / name),
                hint="put the file itself there, if it is meant to be published",
            )


def _refuse_gaps(folder: Path, names: list[str]) -> None:
    """What was listed by an index, or is the point of the folder, must be there."""
    if not any(_matches(name, WEIGHTS) for name in names):
        raise ArgumentError("holds no weights", place=str(folder), hint=AGAIN)
    for index in (name for name in names if name.endswith(".index.json")):
        shards = read_json_object(folder / index, hint=AGAIN).get("weight_map")
        for shard in sorted(set(shards.values())) if isinstance(shards, dict) else ():
            if shard not in names:
                raise ArgumentError(f"'{shard}' is missing, which {index} names", place=str(folder), hint=AGAIN)


def shareable(path: Path, base: PushedBase | None) -> Path | bytes:
    """The file, or its text with names for the paths of this machine."""
    if not path.name.endswith(".json") or path.name == "tokenizer.json" or path.stat().st_size > 1_000_000:
        return path
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return path
    shared = without_paths(values, base)
    if shared == values:
        return path
    return (json.dumps(shared, indent=2, ensure_ascii=False) + "\n").encode()


def without_paths(value: Any, base: PushedBase | None, key: str = "") -> Any:
    """`value` with a base in a folder named as the Hub knows it, and of paths below the home folder the last name.

    >>> without_paths({"a": ["x"], "name_or_path": "/models/llama"}, None)
    {'a': ['x'], 'name_or_path': 'llama'}
    """
    if isinstance(value, dict):
        return {name: without_paths(one, base, str(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one, base, key) for one in value]
    if not isinstance(value, str):
        return value
    if key in BASE_KEYS and base is not None and (value == base.written or is_path(value)):
        return base.name
    return last_name(value) if key in BASE_KEYS and is_path(value) else without_home(value)


def is_path(text: str) -> bool:
    """Whether a text leads somewhere on this machine."""
    return text.startswith(("/", "~", "./", "../")) and "\n" not in text


def without_home(text: str) -> str:
    """A text that names the home folder, as its last name where it is nothing but a path."""
    home = str(Path.home())
    if home == "/" or f"{home}/" not in text:
        return text
    return last_name(text) if text.startswith(home) and "\n" not in text else text.replace(home, "~")


def refuse_secrets(files: list[PushedFile], folder: Path) -> None:
    """Refuse texts, and the heads of weights, that hold a token, key or password.

    Raises:
        ArgumentError: naming each file and the kind of the secret, never the secret.
    """
    found = [(file.name, kind) for file in files for text in _texts(file) if (kind := find_secret(text))]
    if found:
        raise ArgumentError(
            [
                Problem(
                    f"holds a secret: {kind}", str(folder / name), "take it out, and make a new one where it was issued"
                )
                for name, kind in found
            ]
        )


def _texts(file: PushedFile) -> Iterator[str]:
    if isinstance(file.content, bytes):
        yield file.content.decode("utf-8", "replace")
    elif file.name.endswith(".safetensors"):
        with file.content.open("rb") as weights:
            head = weights.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            yield weights.read(length if length <= MAX_HEADER_BYTES else 0).decode("utf-8", "replace")
    elif not file.name.endswith(".gguf") and file.num_bytes <= MAX_TEXT_BYTES:
        yield file.content.read_text("utf-8", errors="replace")
