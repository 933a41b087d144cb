"""Where on this machine things are kept that can be made again: prepared data, traced plans, measured overheads."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_ELSEWHERE = "or name another folder for the cache: QLORA_CACHE=FOLDER"
"""What to do where the cache cannot be written."""


def cache_folder(kind: str) -> Path:
    """`$QLORA_CACHE/<kind>`, by default `~/.cache/qlora/<kind>`."""
    base = os.environ.get("QLORA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qlora"
    return Path(base).expanduser() / kind
