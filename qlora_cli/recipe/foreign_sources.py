"""Datasets of other tools as `data.train` and `data.eval`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_cli.hub import HUB_FILES
from qlora_cli.recipe.foreign_outcome import Config, Handler, Outcome, coerced

FORMATS = {
    "alpaca": "alpaca",
    "sharegpt": "sharegpt",
    "chat_template": None,
    "completion": "text",
    "pretrain": "text",
    "input_output": None,
    "openai": "messages",
}
"""The first word of axolotl's `type`, or LLaMA-Factory's `formatting` -> our format; None where columns show it."""

COLUMNS = {
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "field_system": "system",
    "field_messages": "messages",
    "field_tools": "tools",
    "field": "text",
}
"""axolotl's keys of a dataset -> our format fields."""

OWN_KEYS = ("subset", "streaming", "weight")
"""Keys of a source that mean the same everywhere."""

DEFAULT_COLUMNS = {"messages": ("messages", "conversations"), "conversations": ("conversations",), "text": ("text",)}
"""Format field -> columns that are found without being named."""

SAME = "as it is read here"
NO_PATH = "names no path"


def axolotl_sources(ours: str) -> Handler:
    """A list of datasets, each a section."""

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        sources = []
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            where = f"{key}[{index}]"
            section = item if isinstance(item, dict) else {"path": item}
            outcomes = list(_axolotl_source(where, section))
            yield from (Outcome(one.key, one.value, {}, one.why, one.is_needless) for one in outcomes if one.why)
            source = _merged(outcomes)
            if source.get("path"):
                sources.append(source)
            else:
                yield Outcome(where, item, why=NO_PATH)
        yield Outcome(key, value, {ours: sources})

    return handle


def _merged(outcomes: list[Outcome]) -> dict[str, Any]:
    source: dict[str, Any] = {}
    for outcome in outcomes:
        for name, value in outcome.settings.items():
            if name == "columns":
                source["columns"] = source.get("columns", {}) | value
            else:
                source[name] = value
    return source


def _axolotl_source(where: str, section: dict[str, Any]) -> Iterator[Outcome]:
    for key, value in section.items():
        name = f"{where}.{key}"
        if value is None:
            continue
        if key in ("path", "split", "revision", "name") and isinstance(value, dict | list):
            yield Outcome(name, value, why="one text is read here")
        elif key == "path":
            yield Outcome(name, value, {} if section.get("data_files") else {"path": str(value)})
        elif key == "data_files":
            yield from _data_files(name, value, str(section.get("path") or ""))
        elif key in ("split", "revision"):
            yield Outcome(name, value, {key: str(value)})
        elif key == "name":
            yield Outcome(name, value, {"subset": str(value)})
        elif key == "type":
            yield from _axolotl_type(name, value, section)
        elif key in COLUMNS:
            is_sharegpt = key == "field_messages" and str(section.get("type")).startswith("sharegpt")
            yield from _column(name, value, "conversations" if is_sharegpt else COLUMNS[key])
        elif key == "message_property_mappings":
            yield from _properties(name, value)
        elif key in OWN_KEYS:
            yield Outcome(name, value, {key: coerced(f"data.train.{key}", value)})
        elif key == "ds_type":
            yield Outcome(name, value, why="the file's ending says it", is_needless=True)
        else:
            yield Outcome(name, value, why="a dataset has no such key here; `qlora data show` shows how rows are read")


def _data_files(name: str, value: Any, path: str) -> Iterator[Outcome]:
    if not isinstance(value, str | list) or not all(isinstance(file, str) for file in value):
        yield Outcome(name, value, {"path": path} if path else {}, "no file or list of files: write it as the path")
        return
    files = [value] if isinstance(value, str) else value
    prefix = "" if path in ("", "json", "csv", "parquet", "arrow", "text") else f"{path}/"
    why = f"one source has one path: add the others ({', '.join(map(str, files[1:]))})" if files[1:] else ""
    if not files:
        yield Outcome(name, value, {"path": path} if prefix else {}, "names no file", is_needless=True)
    else:
        is_on_hub = bool(prefix) and not Path(path).is_dir() and not path.startswith(HUB_FILES)
        yield Outcome(name, value, {"path": f"{HUB_FILES if is_on_hub else ''}{prefix}{files[0]}"}, why)


def _axolotl_type(name: str, value: Any, section: dict[str, Any]) -> Iterator[Outcome]:
    if isinstance(value, dict):
        for key, column in value.items():
            if key in COLUMNS and column is not None:
                yield from _column(f"{name}.{key}", column, COLUMNS[key])
            elif column is not None:
                why = "prompts are made by the tokenizer's chat template here"
                yield Outcome(f"{name}.{key}", column, why=why)
        return
    kind = str(value).replace(":", ".").split(".")[0]
    if kind not in FORMATS:
        yield Outcome(name, value, why="not a format here: it is detected from the columns, or named in `format`")
    elif FORMATS[kind] is None:
        yield Outcome(name, value, why="the format is detected from the columns", is_needless=True)
    else:
        yield Outcome(name, value, {"format": FORMATS[kind]})


def _column(name: str, column: Any, ours: str) -> Iterator[Outcome]:
    if isinstance(column, dict | list):
        yield Outcome(name, column, why="one text is read here")
    elif str(column) in DEFAULT_COLUMNS.get(ours, ()):
        yield Outcome(name, column, why=SAME, is_needless=True)
    else:
        yield Outcome(name, column, {"columns": {ours: str(column)}})


def _properties(name: str, value: Any) -> Iterator[Outcome]:
    known = ({"role": "from", "content": "value"}, {"role": "role", "content": "content"})
    is_known = isinstance(value, dict) and any(value.items() <= pairs.items() for pairs in known)
    why = SAME if is_known else "messages are read with role/content or from/value"
    yield Outcome(name, value, why=why, is_needless=is_known)


def llama_factory_sources(ours: str) -> Handler:
    """Names, separated by commas, that dataset_info.json explains."""

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        folder = str(config.get("dataset_dir") or "data")
        names = value if isinstance(value, list) else str(value).split(",")
        described = _dataset_info(Path(folder))
        sources = []
        for name in (str(name).strip() for name in names):
            info = described.get(name)
            if isinstance(info, dict):
                outcomes = list(_described_source(f"{key}.{name}", info, folder))
                sources.append(_merged(outcomes))
                yield from (Outcome(one.key, one.value, {}, one.why, one.is_needless) for one in outcomes if one.why)
            else:
                sources.append({"path": f"{folder}/{name}.json"})
                why = f"{folder}/dataset_info.json, which says where it lies, is not there or does not name it: check"
                yield Outcome(f"{key}.{name}", name, why=f"{why} the path '{folder}/{name}.json'")
        yield Outcome(key, value, {ours: sources})

    return handle


def _dataset_info(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return described if isinstance(described, dict) else {}


def _described_source(where: str, info: dict[str, Any], folder: str) -> Iterator[Outcome]:
    tags = info.get("tags")
    is_openai = isinstance(tags, dict) and (tags.get("role_tag"), tags.get("content_tag")) == ("role", "content")
    formatting = "openai" if is_openai else str(info.get("formatting", "alpaca"))
    fields = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
        "tools": "tools",
        "messages": "conversations" if formatting == "sharegpt" else "messages",
    }
    for key, value in info.items():
        name = f"{where}.{key}"
        if key == "file_name":
            yield Outcome(name, value, {"path": f"{folder}/{value}"})
        elif key == "hf_hub_url" and "file_name" not in info:
            yield Outcome(name, value, {"path": str(value)})
        elif key == "split":
            yield Outcome(name, value, {key: str(value)})
        elif key in OWN_KEYS:
            yield Outcome(name, value, {key: coerced(f"data.train.{key}", value)})
        elif key == "formatting":
            yield Outcome(name, value, {"format": FORMATS[formatting]} if FORMATS.get(formatting) else {}, "")
        elif key == "columns" and isinstance(value, dict):
            for field, column in value.items():
                if field in fields:
                    yield from _column(f"{name}.{field}", column, fields[field])
                else:
                    yield Outcome(f"{name}.{field}", column, why="no such column is read here")
        elif key == "tags" and is_openai:
            yield Outcome(name, value, why=SAME, is_needless=True)
        elif key == "ranking" and value:
            yield Outcome(
                name, value, why="pairs of answers: `completion: chosen` in `columns` trains on the better one"
            )
        else:
            yield Outcome(name, value, why="a dataset has no such key here; `qlora data show` shows how rows are read")


def hub_sources(ours: str, split_key: str) -> Handler:
    """TRL's dataset name with its config and split."""

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        source = {"path": str(value)}
        if config.get("dataset_config") is not None:
            source["subset"] = str(config["dataset_config"])
        if config.get(split_key) is not None:
            source["split"] = str(config[split_key])
        yield Outcome(key, value, {ours: [source]})

    return handle


def test_split(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """TRL's held-out split, which it reads where an evaluation is asked for."""
    strategy = config.get("eval_strategy", config.get("evaluation_strategy", "no"))
    if config.get("dataset_name") is None or str(strategy).lower() in ("no", "false"):
        yield Outcome(key, value, why="nothing is evaluated while training", is_needless=True)
    else:
        yield from hub_sources("data.eval", key)(key, config["dataset_name"], config)


def mixture(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """TRL's `dataset_mixture`: a list of datasets with their weights."""
    section = value if isinstance(value, dict) else {}
    sources = []
    for index, item in enumerate(section.get("datasets") or ()):
        source: dict[str, Any] = {}
        for name, part in (item if isinstance(item, dict) else {"path": item}).items():
            ours = {"id": "path", "path": "path", "config": "subset", "name": "subset", "split": "split"}.get(name, "")
            where = f"{key}.datasets[{index}].{name}"
            if ours and part is not None:
                source[ours] = str(part)
            elif name in OWN_KEYS and part is not None:
                source[name] = coerced(f"data.train.{name}", part)
            elif name == "columns":
                yield Outcome(where, part, why="columns are found by their names", is_needless=True)
            elif part is not None:
                yield Outcome(where, part, why="a source has no such key here")
        if source.get("path"):
            sources.append(source)
        else:
            yield Outcome(f"{key}.datasets[{index}]", item, why=NO_PATH)
    for name, part in section.items():
        if name != "datasets" and part is not None:
            yield Outcome(f"{key}.{name}", part, why="write the share of held-out rows: 'data.eval_fraction'")
    yield Outcome(key, value, {"data.train": sources})
