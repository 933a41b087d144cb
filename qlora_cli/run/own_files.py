"""The files that a run consists of; everything else in its directory is somebody else's and stays."""

from __future__ import annotations

from pathlib import Path

from qlora_cli.run.eval_results import eval_files
from qlora_cli.run.files import is_own_page
from qlora_cli.run.inventory import checkpoint_files, is_plain_file, listed_files

FILES = (
    "log.txt",
    "metrics.jsonl",
    "data/report.json",
    "data/rejected.jsonl",
    "data/first_rows.json",
    "manifest.json",
    "recipe.yaml",
)
PAGE = "report.html"
"""Ours where its head says so; a page of that name that somebody else put there stays."""

FOLDERS = ("adapter", "residual", "integers", "eval", "merged")
"""Folders that hold a list of what was written into them."""

LINK_PLACES = (*FILES, *FOLDERS, "data", "tensorboard", "checkpoints", ".lock", ".earlier")
"""Names that are written to, and so must not be links that lead elsewhere."""

TENSORBOARD_FILES = "events.out.tfevents.*"


def run_files(run: Path) -> list[str]:
    """The files of the run in the directory `run`, relative to it; its recipe is the last."""
    names = {name for name in FILES if is_plain_file(run, name)}
    if is_own_page(run / PAGE):
        names.add(PAGE)
    folders = dict.fromkeys(FOLDERS, listed_files) | {"eval": eval_files}
    folders |= {f"checkpoints/{path.name}": checkpoint_files for path in sorted((run / "checkpoints").glob("step-*"))}
    for folder, listing in folders.items():
        if _is_plain_folder(run, folder):
            names |= {f"{folder}/{name}" for name in listing(run / folder)}
    if _is_plain_folder(run, "tensorboard"):
        found = (path.relative_to(run).as_posix() for path in (run / "tensorboard").rglob(TENSORBOARD_FILES))
        names |= {name for name in found if is_plain_file(run, name)}
    return sorted(names, key=lambda name: (name == "recipe.yaml", name))


def _is_plain_folder(run: Path, name: str) -> bool:
    return (run / name).is_dir() and not any(
        (run / part).is_symlink() for part in (name, *map(str, Path(name).parents))
    )
