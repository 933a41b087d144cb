"""`qlora report` and `qlora compare` as functions; they belong to `api.py`, which has the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_cli.calling import AnyPath, called

if TYPE_CHECKING:
    from qlora_cli.report.compare import Comparison
    from qlora_cli.report.write import Report


@called
def report(run: AnyPath | None = None, *, out: AnyPath | None = None, watch: bool = False) -> Report:
    """Write the page that shows a run, as `qlora report`.

    Args:
        run: run directory; the latest run when None.
        out: the page; `<run>/report.html` when None.
        watch: write it again whenever the run has grown, until the run is over.

    Raises:
        QloraError: if there is no such run, or a file that is not ours has the name.
        KeyboardInterrupt: after Ctrl-C, while a run is watched; the page is there, and no longer loads itself again.
    """
    from qlora_cli.report.write import watch_report, write_report
    from qlora_cli.run.directory import RunDirectory, latest_run

    directory = latest_run() if run is None else RunDirectory(Path(run))
    path = None if out is None else Path(out)
    return watch_report(directory, path) if watch else write_report(directory, path)


@called
def compare(runs: Sequence[AnyPath], *, out: AnyPath | None = None) -> Comparison:
    """Lay runs beside each other, as `qlora compare`; each later one is compared with the first.

    Args:
        runs: two run directories at least.
        out: the page; `compare.html` beside the first run when None.

    Raises:
        QloraError: if there are fewer than two, one of them is none, or a file that is not ours has the name.
    """
    from qlora_cli.report.compare_page import read_and_compare
    from qlora_cli.run.directory import RunDirectory

    return read_and_compare([RunDirectory(Path(run)) for run in runs], None if out is None else Path(out))
