"""Every export format of a run, each opened by its engine, beside the base in the same format; for docs/export.md.

    make bench-export RUN=runs/chat
    .venv/bin/python benchmarks/export.py runs/chat               print the table, and write it into docs/export.md
    .venv/bin/python benchmarks/export.py runs/chat --only mlx    print the rows of one format, or of several

A format whose engine is not installed (`qlora env`) has no row, and is named.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from qlora_cli.choices import ExportFormat
from qlora_cli.deploy.export import attempts_for, undoes_update, with_yardstick
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


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--only", choices=FORMATS, nargs="+", help="these formats; the page is left as it is")
    arguments = parser.parse_args()
    lines = []
    rows = table_rows(arguments.run, arguments.only or list(FORMATS))
    for cells in chain((HEAD, ("---",) * len(HEAD)), rows):
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    if not arguments.only:
        before, rest = PAGE.read_text("utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        PAGE.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", "utf-8")


def table_rows(run: Path, formats: list[ExportFormat]) -> Iterator[tuple[str, ...]]:
    """One row for each format and type."""
    source = find_tuned(run)
    with (
        tempfile.TemporaryDirectory() as folder,
        attempts_for(source, ExportOptions("gguf"), Path(folder) / "out", Path(folder)) as start,
    ):
        for name in formats:
            form = FORMATS[name]
            version = form.engine.version()
            if version is None:
                print(f"{name}: {form.engine.name} is not installed", file=sys.stderr)
                continue
            for quant, group in _types(name, form):
                print(name, quant, group, file=sys.stderr, flush=True)
                options = ExportOptions(name, quant, group)
                try:
                    form.check(source, options.of_format)
                    with tempfile.TemporaryDirectory() as out, _attempts(start, form, options, version) as attempts:
                        place = start.plain if form.write is None else Path(out)
                        yield _cells(name, group, attempt_export(attempts, place))
                except QloraError as error:
                    print(f"{name} {quant}: {error}", file=sys.stderr, flush=True)


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
    yield attempts if form.loses_nothing else with_yardstick(attempts)


def _types(name: str, form: Format) -> Iterator[tuple[str | None, int | None]]:
    for quant in SAME_FILES.get(name, form.quants or (None,)):
        for group in GROUPS.get(name, (None,)) if quant in form.quants[:1] else (None,):
            yield quant, group


def _cells(name: str, group: int | None, attempt: Attempt) -> tuple[str, ...]:
    proof = attempt.proof
    assert proof is not None
    base = proof.base_agreement
    return (
        name,
        f"{attempt.quant or ''}{f', groups of {group}' if group else ''}",
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
