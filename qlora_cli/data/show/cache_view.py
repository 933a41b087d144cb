"""The cache of prepared data as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qlora_cli import console
from qlora_cli.console import size_in_words
from qlora_cli.data.cache import CacheEntry
from qlora_cli.data.show.report_view import show_lines
from qlora_cli.visible_text import visible

NUM_CHARS_OF_KEY = 8


def show_entries(entries: Sequence[CacheEntry], root: Path) -> None:
    """Print what is there, how much of it, and where."""
    if not entries:
        console.note(f"the cache is empty ({root})")
        return
    rows = [
        (
            entry.key[:NUM_CHARS_OF_KEY],
            f"{entry.num_rows:,}",
            size_in_words(entry.num_bytes),
            _minute(entry.made_at),
            _minute(entry.used_at),
            visible(", ".join(entry.sources)),
        )
        for entry in entries
    ]
    show_lines(("entry", "rows", "size", "made", "last used", "sources"), rows)
    console.result("")
    console.result(f"{size_in_words(sum(entry.num_bytes for entry in entries))} in {root}")


def entries_as_dict(entries: Sequence[CacheEntry], root: Path) -> dict[str, Any]:
    """The entries, as JSON holds them."""
    return {"path": str(root), "entries": [{**asdict(entry), "path": str(entry.path)} for entry in entries]}


def _minute(moment: str) -> str:
    """
    >>> _minute("2026-03-01T12:34:56Z")
    '2026-03-01 12:34'
    """
    return moment[:16].replace("T", " ")
