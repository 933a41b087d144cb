"""A run that takes another's place without its training: what each holds, and the way from one to the other."""

from __future__ import annotations

from pathlib import Path

from qlora_cli import console
from qlora_cli.errors import DataError, QloraError
from qlora_cli.run.directory import RunDirectory
from qlora_cli.run.earlier import put_aside, settle
from qlora_cli.run.files import write_text
from qlora_cli.run.storage import storage_faults

EARLIER = {
    "adapter/adapter_config.json": "{}",
    "checkpoints/step-000002/seal.json": "earlier",
    "data/report.json": "earlier",
    "log.txt": "earlier",
    "manifest.json": "earlier",
    "notes by hand.txt": "earlier",
    "recipe.yaml": "name: earlier\n",
}
NEW = {"log.txt": "new", "manifest.json": "new", "recipe.yaml": "name: new\n"}


def lay(run: RunDirectory, content: dict[str, str]) -> None:
    """Write all that a run holds, its recipe last."""
    for name, text in content.items():
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(run.path / name, text)


def content_of(run: RunDirectory) -> dict[str, str]:
    """Every file below the run but its lock, hidden ones included."""
    files = (path for path in run.path.rglob("*") if path.is_file() and path != run.lock_path)
    return {str(path.relative_to(run.path)): path.read_text() for path in sorted(files)}


def replace(run: str, can_start: bool) -> int:
    """In a child: put the earlier run aside, prepare the new one, and start it or find that its data are bad."""
    directory = RunDirectory(Path(run))
    try:
        with directory.claimed(), storage_faults(directory):
            put_aside(directory)
            (directory.path / "log.txt").write_text("new")
            if not can_start:
                raise DataError("no row can be trained on")
            lay(directory, NEW)
            settle(directory)
    except QloraError as error:
        console.show_error(error)
        return error.exit_code
    return 0
