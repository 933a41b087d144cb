"""Packed rows for training and evaluation, from the cache or made now."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from qlora_cli.cache_folder import CACHE_ELSEWHERE
from qlora_cli.data.build import EVAL_FILE, TRAIN_FILE, Built, build_data
from qlora_cli.data.cache import FACTS_FILE, cache_key, cache_root, locked, touch
from qlora_cli.data.collect_rows import REJECTED_FILE
from qlora_cli.data.duplicate_index import DedupeMode
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.report import DataReport
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import DataSection
from qlora_cli.run.disk_errors import naming
from qlora_cli.run.files import write_json
from qlora_cli.run.folders import replaced_folder


@dataclass(frozen=True)
class PreparedData:
    """The rows that a run trains and evaluates on."""

    train: PackedRows
    eval: PackedRows
    """Held-out rows; empty where the recipe asks for none."""

    report: DataReport
    fingerprint: str
    """SHA-256 over the tokens and labels of all rows, in order."""

    rejected_path: Path
    """JSON Lines of the rows that were taken out: place, cause, text, row."""

    is_cached: bool
    """Whether nothing had to be done for it."""

    _holder: object = None
    """Keeps a folder that is not a cache entry for as long as this is used."""


def prepare_data(data: DataSection, renderer: Renderer, seed: int) -> PreparedData:
    """Read, render, clean, hold out, mix and pack; or find all that done.

    Args:
        data: the recipe's section.
        renderer: of the base model's tokenizer, with the section's `train_on`.
        seed: chooses held-out rows and samples.

    Raises:
        DataError: data that cannot be read, or that would teach nothing or the wrong thing.
    """
    key = cache_key(data, renderer, seed)
    if key is None:
        with naming(Path(tempfile.gettempdir()), "or name another folder for temporary files: TMPDIR=FOLDER"):
            folder = tempfile.TemporaryDirectory(prefix="qlora-data-")
            _refuse(build_into(Path(folder.name), data, renderer, seed))
        return _open(Path(folder.name), is_cached=False, holder=folder)
    with naming(cache_root(), CACHE_ELSEWHERE), locked(key) as entry:
        is_cached = touch(entry)
        if not is_cached:
            with replaced_folder(entry) as stage:
                _refuse(build_into(stage, data, renderer, seed))
        return _open(entry, is_cached=is_cached)


def build_into(
    folder: Path, data: DataSection, renderer: Renderer, seed: int, *, look_for: DedupeMode | None = None
) -> Built:
    """Make the data in a folder, with the facts that a cache entry needs."""
    built = build_data(data, renderer, seed, folder, look_for=look_for)
    facts = {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "fingerprint": built.fingerprint,
        "files": built.files,
        "report": built.report.as_dict(),
    }
    write_json(folder / FACTS_FILE, facts)
    return built


def _refuse(built: Built) -> None:
    if built.problems:
        raise DataError(built.problems)


def _open(folder: Path, *, is_cached: bool, holder: object = None) -> PreparedData:
    facts = json.loads((folder / FACTS_FILE).read_text("utf-8"))
    train, evaluation = (PackedRows(folder / name, facts["files"]) for name in (TRAIN_FILE, EVAL_FILE))
    report = DataReport.from_dict(facts["report"])
    return PreparedData(train, evaluation, report, facts["fingerprint"], folder / REJECTED_FILE, is_cached, holder)
