"""Prepared data on disk, found again by everything that shapes it.

An entry is a folder named by its key. It appears complete, in one rename; while it is made or opened its lock is held,
so of many processes that start together one does the work and the others wait for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO

from qlora_cli import compat, constants
from qlora_cli.cache_folder import cache_folder
from qlora_cli.data.read.sources import source_files
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.recipe.data_schema import DataSection, SourceSection
from qlora_cli.run.files import sha256_file
from qlora_cli.run.folders import delete_folder, sweep
from qlora_cli.run.inventory import has_inventory, listed_files
from qlora_cli.run.manifest import DISTRIBUTION

FACTS_FILE = "facts.json"
LIBRARIES = (DISTRIBUTION, "transformers", "tokenizers", "jinja2", "pyarrow", "datasets", "datasketch", "numpy")

KEY = re.compile(r"[0-9a-f]{32}")
"""Name of an entry's folder."""

SCRATCH = "check"
"""Name of what `qlora data check` is making."""

_COMMIT_LENGTH = 40


@dataclass(frozen=True)
class CacheEntry:
    """One prepared dataset."""

    key: str
    path: Path
    num_bytes: int
    num_rows: int
    """Training rows of one epoch."""

    made_at: str
    used_at: str
    sources: tuple[str, ...]


def cache_root() -> Path:
    """The folder of prepared data, which has one folder for each entry."""
    return cache_folder("data")


def cache_key(data: DataSection, renderer: Renderer, seed: int) -> str | None:
    """Hash over the files' bytes, tokenizer, template, settings, code and libraries that shape prepared data.

    None where a source may change without notice: a Hub dataset whose `revision` is not a commit.

    Raises:
        DataError: if a source is not there.
    """
    sources = [_identity(source) for source in (*data.train, *(data.eval or ()))]
    if None in sources:
        return None
    facts = {
        "settings": data.model_dump(mode="json"),
        "seed": seed,
        "sources": sources,
        "renderer": renderer.fingerprint,
        "code": _code_fingerprint(),
        "libraries": library_versions(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@cache
def library_versions() -> dict[str, str]:
    """Version of each library that shapes prepared data."""
    return {name: version(name) for name in LIBRARIES}


def _identity(source: SourceSection) -> list[str] | None:
    files = source_files(source)
    if files:
        return [f"{file}:{sha256_file(file)}" for file in files]
    is_commit = len(source.revision or "") == _COMMIT_LENGTH
    return [f"{source.path}@{source.revision}"] if is_commit else None


@cache
def _code_fingerprint() -> str:
    """Of the code that makes rows: a changed rule makes other rows under the same version number."""
    digest = hashlib.sha256()
    for path in code_files():
        digest.update(path.read_bytes())
    return digest.hexdigest()


def code_files() -> list[Path]:
    """Files of this package that make rows, the work-arounds, one of which changes messages, and constants."""
    own = [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".jinja")]
    return [
        Path(compat.__file__),
        Path(constants.__file__),
        *sorted(path for path in own if path.parent.name != "show"),
    ]


@contextmanager
def locked(key: str) -> Iterator[Path]:
    """The folder of an entry, there or not, while nobody else makes, opens or deletes it."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with _lock_file(key) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root / key


def _lock_file(key: str) -> IO[str]:
    return (cache_root() / f".{key}.lock").open("a")


def touch(entry: Path) -> bool:
    """Whether the entry is there; it counts as used now."""
    try:
        os.utime(entry / FACTS_FILE)
    except FileNotFoundError:
        return False
    return True


def list_entries() -> list[CacheEntry]:
    """All entries, the latest used first."""
    entries = []
    for path in cache_root().glob(f"*/{FACTS_FILE}"):
        if not _is_entry(path.parent):
            continue
        facts = json.loads(path.read_text("utf-8"))
        num_bytes = sum(file.stat().st_size for file in path.parent.iterdir())
        report = facts["report"]
        sources = tuple(dict.fromkeys(source["path"] for source in report["sources"]))
        used_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(path.stat().st_mtime))
        entry = CacheEntry(
            path.parent.name, path.parent, num_bytes, report["num_train"], facts["made_at"], used_at, sources
        )
        entries.append(entry)
    return sorted(entries, key=lambda entry: entry.used_at, reverse=True)


def clear(keys: Sequence[str] | None = None) -> int:
    """Delete entries, all of them when no key is given, and what killed processes left; those in use stay.

    Only files that an entry lists are deleted: `QLORA_CACHE` may lead to a folder with other things.

    Returns:
        Bytes that were freed.
    """
    root = cache_root()
    before = _num_bytes(root)
    for path in sorted(root.glob("*")):
        if not _is_entry(path) or (keys is not None and path.name not in keys):
            continue
        with _lock_file(path.name) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            delete_folder(path, listed_files(path))
    if keys is None:
        sweep(root, f"{KEY.pattern}|{SCRATCH}")
    return before - _num_bytes(root)


def _is_entry(path: Path) -> bool:
    return KEY.fullmatch(path.name) is not None and not path.is_symlink() and has_inventory(path)


def _num_bytes(root: Path) -> int:
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file() and not file.is_symlink())
