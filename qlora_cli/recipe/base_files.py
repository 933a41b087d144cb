"""Checks of a recipe's base folder that need no torch: configuration, positions, tokenizer, weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qlora_cli.hub import hub_id_in, is_hub_id
from qlora_cli.recipe.shipped import command_for_base
from qlora_cli.recipe.stored_rules import KEY, check_stored
from qlora_cli.recipe.written import Conflict, RawRecipe, at, conflict

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json"),
    *("sentencepiece.bpe.model", "tokenizer_file.json"),
)

LOCAL_PARENTS = {"runs", "models", "model", "bases", "base", "data", "checkpoints", "out", "output", "outputs", "build"}
"""Names of folders that people keep, which are not organisations on the Hub."""

MAX_CONFIG_BYTES = 10_000_000

CONFIG_HINT = "name the folder that holds config.json and the weights, or a Hub id"


def check_base(written: RawRecipe) -> Iterator[Conflict]:
    """Conflicts of a base that is on this machine, and of settings that do not suit it."""
    name = at(written, KEY)
    if not isinstance(name, str) or not name:
        return
    folder = Path(name).expanduser()
    if folder.is_dir():
        yield from _check_folder(folder, written)
    elif folder.exists():
        yield conflict(KEY, (), f"'{KEY}: {name}' is a file", CONFIG_HINT)
    elif not is_hub_id(name) or _is_meant_here(folder):
        yield conflict(KEY, (), f"'{KEY}: {name}' is not there", path_hint(name))
    elif (cached := cached_base(name, at(written, "model.revision"))) is not None:
        config = read_config(cached)
        if isinstance(config, dict):
            yield from _check_settings(config, written)


def is_base_on_hub(name: str) -> bool:
    """Whether the base would have to come from the Hub."""
    return not Path(name).exists() and is_hub_id(name) and not _is_meant_here(Path(name)) and cached_base(name) is None


def default_beyond(name: str, max_length: int) -> int | None:
    """The positions of a local base where they are fewer than `max_length`."""
    config = config_here(name)
    positions = None if config is None else num_positions(config)
    return positions if positions is not None and max_length > positions else None


def cached_base(name: str, revision: object = None) -> Path | None:
    """The folder of the Hub's cache that holds the base, at its newest revision where none is named."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    entry = cache / f"models--{name.replace('/', '--')}"
    wanted = revision if isinstance(revision, str) else "main"
    try:
        commit = (entry / "refs" / wanted).read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = wanted
    folder = entry / "snapshots" / commit
    return folder if (folder / "config.json").is_file() else None


def config_here(name: str, revision: object = None) -> dict[str, Any] | None:
    """The config.json of a base that is on this machine; None where it is not, or cannot be read."""
    folder = Path(name) if Path(name).is_dir() else cached_base(name, revision)
    config = read_config(folder) if folder else None
    return config if isinstance(config, dict) else None


def read_config(folder: Path) -> dict[str, Any] | str:
    """The folder's config.json, or what is wrong with it."""
    path = folder / "config.json"
    if path.exists() and not path.is_file():  # a pipe would be read for ever
        return "has a config.json that is not a file"
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except FileNotFoundError:
        return "holds no config.json"
    except OSError as error:
        return f"has a config.json that cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return "has a config.json that is damaged"
    return config if isinstance(config, dict) else "has a config.json that is no JSON object"


def num_positions(config: Mapping[str, Any]) -> int | None:
    """Positions that the base was made for, those that scaling adds included; None where its config does not say.

    >>> num_positions({"text_config": {"max_position_embeddings": 4096}}), num_positions({"n_positions": 1024})
    (4096, 1024)
    >>> scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    >>> num_positions({"max_position_embeddings": 32768, "rope_scaling": scaled})
    131072
    """
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"):
        number = config.get(key)
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            scaling = config.get("rope_scaling") or config.get("rope_parameters")
            return max(number, _scaled(scaling) if isinstance(scaling, dict) else 0)
    return None


def _scaled(scaling: Mapping[str, Any]) -> int:
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    return int(factor * original) if isinstance(factor, int | float) and isinstance(original, int) else 0


def _check_folder(folder: Path, written: RawRecipe) -> Iterator[Conflict]:
    config = read_config(folder)
    if isinstance(config, str):
        hint = CONFIG_HINT
        if (folder / "adapter_config.json").is_file():
            config, hint = "is an adapter, not a base", "name the base that it was trained on"
        elif below := sorted(folder.glob("*/config.json")):
            hint = f"did you mean '{below[0].parent}'?"
        yield conflict(KEY, (), f"the folder of '{KEY}: {folder}' {config}", hint)
        return
    if not any((folder / name).is_file() for name in TOKENIZER_FILES) and not any(folder.glob("*.tiktoken")):
        text = f"the folder of '{KEY}: {folder}' holds no tokenizer"
        yield conflict(KEY, (), text, "download the model again, tokenizer.json included")
    if fault := _weights_fault(folder, allow_pickle=at(written, "model.allow_pickle") is True):
        yield conflict(KEY, ("model.allow_pickle",), f"the folder of '{KEY}: {folder}' {fault[0]}", fault[1])
    yield from _check_settings(config, written)


def _weights_fault(folder: Path, *, allow_pickle: bool) -> tuple[str, str] | None:
    """The fault of the weights, and the remedy."""
    again = "download the model again"
    for name in ("model.safetensors", "pytorch_model.bin") if allow_pickle else ("model.safetensors",):
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                shards = set(json.loads(index.read_bytes())["weight_map"].values())
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                return f"has a damaged {index.name}", again
            missing = sorted(str(shard) for shard in shards if not (folder / str(shard)).is_file())
            return (f"lacks '{missing[0]}', which {index.name} names", again) if missing else None
        if (folder / name).is_file():
            return None
    if any(folder.glob("pytorch_model*.bin")):
        hint = "convert it to safetensors; if you trust its .bin files, write `allow_pickle: true` under `model:`"
        return "holds pickled weights only", hint
    return "holds no model.safetensors", again


def _check_settings(config: Mapping[str, Any], written: RawRecipe) -> Iterator[Conflict]:
    length, positions = at(written, "data.max_length"), num_positions(config)
    if isinstance(length, int) and positions is not None and length > positions:
        text = f"'data.max_length: {length}' is beyond the {positions:,} positions of the base (its config.json)"
        yield conflict("data.max_length", (KEY,), text, f"write `max_length: {positions}`, or less")
    yield from check_stored(config, written)


def _is_meant_here(path: Path) -> bool:
    """Whether a name that could be on the Hub is surely that of a folder here."""
    parent = path.parts[0] if len(path.parts) > 1 else ""
    return bool(parent) and Path(parent).is_dir() and (parent in LOCAL_PARENTS or bool(_close(path)))


def path_hint(name: str) -> str:
    """What to type in place of a base that is neither a folder here nor a Hub id."""
    if command := command_for_base(name):
        return f"make it first: `{command}`"
    path = Path(name).expanduser()
    if close := _close(path):
        return "did you mean " + " or ".join(f"'{path.parent / one}'" for one in close) + "?"
    hub = f"on the Hub it is {found}" if (found := hub_id_in(name)) else "a Hub id has the form Qwen/Qwen3-8B"
    return f"paths start at the current directory, {Path.cwd()}; {hub}"


def _close(path: Path) -> list[str]:
    """Folders beside the path with names much like its own."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return []
    return get_close_matches(path.name, names, n=3, cutoff=0.7)
