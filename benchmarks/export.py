"""Every export format of a run, each opened by its engine, beside the base in the same format; for docs/export.md.

    make bench-export RUN=runs/chat
    .venv/bin/python benchmarks/export.py runs/chat               print the table, and write it into docs/export.md
    .venv/bin/python benchmarks/export.py runs/chat --only mlx    print the rows of one format, or of several
    .venv/bin/python benchmarks/export.py runs/chat --missing     measure what the page has no row of; the rest stays

A format whose engine is not installed (`qlora env`) has no row, and is named.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from qlora_cli.choices import ExportFormat
from qlora_cli.deploy.export import attempts_for, undoes_update, with_base
from qlora_cli.deploy.export_attempts import Attempt, Attempts, attempt_export
from qlora_cli.deploy.export_options import ExportOptions
from qlora_cli.deploy.formats.format import Format
from qlora_cli.deploy.formats.table import FORMATS
from qlora_cli.errors import QloraError
from qlora_cli.model.tuned import find_tuned

PAGE = Path(__file__).resolve().parents[1] / "docs" / "export.md"
MARKS = "<!-- benchmarks/export.py begins -->\n", "<!-- benchmarks/export.py ends -->\n"
HEAD = (
    "format",
    "type",
    "MB",
    "mean KL",
    "the base's own",
    "allowed",
    "top-1",
    "same answers",
    "tokens/s",
    "opened by",
)
GROUPS = {"compressed-tensors": (128, 64, 32), "gptq": (128, 32), "mlx": (64, 32)}
"""Sizes of groups that the usual type has a row for; each must divide the columns of the model that is measured."""

SAME_FILES = {"ollama": ("q4_k_m",)}
"""Types of a format whose files are those of another format: one row shows that it is opened."""


@dataclass(frozen=True)
class Kind:
    """What a row is of."""

    format: ExportFormat
    quant: str | None
    group: int | None

    @property
    def cells(self) -> tuple[str, str]:
        """The first two cells of its row."""
        return self.format, f"{self.quant or ''}{f', groups of {self.group}' if self.group else ''}"


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--only", choices=FORMATS, nargs="+", help="these; only --missing writes the page then")
    parser.add_argument("--missing", action="store_true", help="keep the rows of the page, which must be of this run")
    arguments = parser.parse_args()
    rows = rows_of(_page()[1]) if arguments.missing else {}
    wanted = [kind for kind in kinds() if kind.format in (arguments.only or FORMATS) and kind.cells not in rows]
    print(line(HEAD), line(("---",) * len(HEAD)), sep="\n", flush=True)
    for cells in measured(arguments.run, wanted):
        print(line(cells), flush=True)
        rows[cells[:2]] = cells
        if arguments.missing or not arguments.only:
            lines = [line(HEAD), line(("---",) * len(HEAD)), *(line(rows[k.cells]) for k in kinds() if k.cells in rows)]
            before, _, after = _page()
            PAGE.write_text("\n".join([before + MARKS[0], *lines, "", MARKS[1] + after]), "utf-8")


def _page() -> tuple[str, str, str]:
    """What is before the table, the table, and what comes after it; read anew for each row, for a row takes minutes."""
    before, rest = PAGE.read_text("utf-8").split(MARKS[0])
    table, after = rest.split(MARKS[1])
    return before, table, after


def line(cells: tuple[str, ...]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def rows_of(table: str) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The rows of a page's table by their first two cells."""
    rows = [tuple(map(str.strip, text.strip("|").split("|"))) for text in table.split("\n") if text.startswith("|")]
    return {cells[:2]: cells for cells in rows[2:]}


def kinds() -> list[Kind]:
    """Every format and type, in the order of the table."""
    return [
        Kind(name, quant, group)  # type: ignore[arg-type]
        for name, form in FORMATS.items()
        for quant in SAME_FILES.get(name, form.quants or (None,))
        for group in (GROUPS.get(name, (None,)) if quant in form.quants[:1] else (None,))
    ]


def measured(run: Path, wanted: list[Kind]) -> Iterator[tuple[str, ...]]:
    """The cells of the rows that can be measured here."""
    source = find_tuned(run)
    with (
        tempfile.TemporaryDirectory() as folder,
        attempts_for(source, ExportOptions("gguf"), Path(folder) / "out", Path(folder)) as start,
    ):
        versions = {name: FORMATS[name].engine.version() for name in dict.fromkeys(kind.format for kind in wanted)}
        for kind in wanted:
            form, version = FORMATS[kind.format], versions[kind.format]
            print(*kind.cells, file=sys.stderr, flush=True)
            if version is None:
                print(f"{form.engine.name} is not installed", file=sys.stderr)
                continue
            options = ExportOptions(kind.format, kind.quant, kind.group)
            try:
                form.check(source, options.of_format)
                with tempfile.TemporaryDirectory() as out, _attempts(start, form, options, version) as attempts:
                    place = start.plain if form.write is None else Path(out)
                    yield _cells(kind, attempt_export(attempts, place))
            except QloraError as error:
                print(error, file=sys.stderr, flush=True)


@contextmanager
def _attempts(start: Attempts, form: Format, options: ExportOptions, version: str) -> Iterator[Attempts]:
    """`start` in another format, or what a type starts from that is not rounded onto the dequantized base."""
    if undoes_update(start.source, options):
        with (
            tempfile.TemporaryDirectory() as folder,
            attempts_for(start.source, options, Path(folder) / "out", Path(folder)) as own,
        ):
            yield own
        return
    attempts = replace(start, form=form, options=options, version=version, base=None)
    yield with_base(attempts)


def _cells(kind: Kind, attempt: Attempt) -> tuple[str, ...]:
    proof = attempt.proof
    assert proof is not None
    base = proof.base_agreement
    return (
        *kind.cells,
        f"{attempt.num_bytes / 1e6:.1f}",
        f"{proof.agreement.mean_kl:.1e}",
        "" if base is None else f"{base.mean_kl:.1e}",
        f"{proof.max_kl:.1e}",
        f"{proof.agreement.top1_agreement:.1%}",
        f"{proof.num_equal_texts} of {proof.num_texts}",
        f"{proof.tokens_per_second:.0f}",
        proof.engine,
    )


if __name__ == "__main__":
    main()
