"""A run that takes another's place without its training: what each holds, and the way from one to the other."""

from __future__ import annotations

import json
from pathlib import Path

from qlora_cli import console
from qlora_cli.errors import DataError, QloraError
from qlora_cli.run.claim import claimed, mark
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.disk_errors import storage_faults
from qlora_cli.run.files import write_text
from qlora_cli.run.inventory import INVENTORY_NAME, MARKER, write_inventory
from qlora_cli.run.replaced_run import restore_or_delete, set_aside

OTHERS = {"adapter/notes.txt": "mine", "checkpoints/step-000002/notes.txt": "mine", "notes by hand.txt": "mine"}
"""What somebody else has put into the run; it stays whatever happens."""

EARLIER = {
    "adapter/adapter_config.json": "{}",
    "checkpoints/step-000002/checkpoint.json": "earlier",
    "data/report.json": "earlier",
    "log.txt": "earlier",
    "manifest.json": json.dumps({**MARKER, "status": "earlier"}),
    "recipe.yaml": "name: earlier\n",
}
NEW = {
    "log.txt": "new",
    "manifest.json": json.dumps({**MARKER, "status": "new"}),
    "recipe.yaml": "name: new\n",
}


def lay(run: RunDirectory, content: dict[str, str]) -> None:
    """Write all that a run holds, its recipe last."""
    for name, text in content.items():
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(run.path / name, text)
    if "adapter/adapter_config.json" in content:
        write_inventory(run.adapter_path)


def content_of(run: RunDirectory) -> dict[str, str]:
    """Every file below the run but its lock and lists, hidden ones included."""
    hidden = (run.lock_path.name, INVENTORY_NAME)
    files = (path for path in run.path.rglob("*") if path.is_file() and path.name not in hidden)
    return {str(path.relative_to(run.path)): path.read_text() for path in sorted(files)}


def replace(run: str, can_start: bool) -> int:
    """In a child: put the earlier run aside, prepare the new one, and start it or find that its data are bad."""
    directory = RunDirectory(Path(run))
    try:
        with claimed(directory), storage_faults(directory):
            set_aside(directory)
            mark(directory)
            (directory.path / "log.txt").write_text("new")
            if not can_start:
                raise DataError("no row can be trained on")
            lay(directory, NEW)
            restore_or_delete(directory)
    except QloraError as error:
        console.show_error(error)
        return error.exit_code
    return 0
