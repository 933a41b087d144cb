"""From a recipe's data section to packed rows on disk, and a report of all that happened on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qlora_cli.data.collect_rows import REJECTED_FILE, CollectedRows, GatheredSource, gather_rows, write_rejections
from qlora_cli.data.duplicate_index import DedupeMode
from qlora_cli.data.mixing import shares
from qlora_cli.data.packed_rows import write_packed_rows
from qlora_cli.data.packing import plan_packing
from qlora_cli.data.pieces import Pieces
from qlora_cli.data.rejection import Rejection, RejectionReason
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.report import DataReport, Finding, SourceReport
from qlora_cli.data.splits import NO_ROWS, Numbers, Split, select
from qlora_cli.errors import DataError, Problem
from qlora_cli.progress import progress
from qlora_cli.recipe.data_schema import DataSection

TRAIN_FILE, EVAL_FILE = "train.arrow", "eval.arrow"


@dataclass(frozen=True)
class Built:
    """The written rows, and the report about them."""

    report: DataReport
    problems: list[Problem]
    """Why training may not start; no rows were written then."""

    files: tuple[str, ...] = ()
    """Names that the numbers in column `files` stand for."""

    fingerprint: str = ""
    """SHA-256 over the tokens and labels of all rows, in order."""


def build_data(
    data: DataSection, renderer: Renderer, seed: int, folder: Path, *, look_for: DedupeMode | None = None
) -> Built:
    """Read, render, clean, hold out, mix and pack.

    Args:
        data: the recipe's section.
        renderer: of the base model's tokenizer, with the section's `train_on`.
        seed: chooses held-out rows and samples.
        folder: takes `train.arrow`, `eval.arrow` and `rejected.jsonl`.
        look_for: duplicates to note in the report.

    Raises:
        DataError: if a source cannot be read. What is wrong with rows is in the result.
    """
    started = time.monotonic()
    gathered = gather_rows(data, renderer, folder, look_for)
    problems = gathered.tally.problems()
    of_the_whole = [] if problems else _problems_of_the_whole(gathered)
    train = evaluation = Split({}, NO_ROWS)
    try:
        train, evaluation, copies = select(data, gathered, seed)
        _leave_out(copies, gathered, folder)
    except DataError as error:
        of_the_whole = of_the_whole or ([] if problems else error.problems)
    problems += of_the_whole
    findings = [
        Finding("the data as a whole", "refused", 0, problem.place, problem.text, problem.hint)
        for problem in of_the_whole
    ]
    findings += [*gathered.tally.findings(), *_dated(data, renderer, gathered.tally.num_read)]
    findings += [_without_effect(item) for item in gathered.sources if item.source.leave_out and not item.num_left_out]
    if gathered.seen is not None:
        findings += _repeats(gathered, train, evaluation)
    rows = _Rows(data, gathered)
    packed = rows.pack(train)
    fingerprint = ""
    if not problems:
        parts = ((TRAIN_FILE, packed), (EVAL_FILE, rows.pack(evaluation)))
        with progress("writing rows"):
            fingerprint = "-".join(
                write_packed_rows(folder / name, rows.written, order, offsets) for name, (order, offsets) in parts
            )
    report = _report(rows, gathered, (train, evaluation), packed)
    gathered.spool.delete()
    report = replace(report, findings=tuple(findings), seconds=round(time.monotonic() - started, 3))
    return Built(report, problems, tuple(gathered.files), fingerprint)


def _dated(data: DataSection, renderer: Renderer, num_rows: int) -> list[Finding]:
    """Finding that the rows hold today's date, where the recipe sets none."""
    date = renderer.printed_date
    if date is None or data.date is not None:
        return []
    text = f"the chat template prints today's date, and the rows hold {date}; a run that is resumed keeps it"
    return [Finding("today's date", "noted", num_rows, "", text, f"`data.date: {date}` makes the same rows every day")]


def _leave_out(copies: Numbers, gathered: CollectedRows, folder: Path) -> None:
    """Count the copies of held-out rows among those taken out."""
    text = "equals a row that is held out"
    rejections = [Rejection(gathered.place(number), RejectionReason.HELD_OUT_COPY, text, "", "") for number in copies]
    for rejection in rejections:
        gathered.tally.reject(rejection)
    with (folder / REJECTED_FILE).open("a", encoding="utf-8") as file:
        write_rejections(file, rejections)


def _problems_of_the_whole(gathered: CollectedRows) -> list[Problem]:
    """Problems that no single row shows."""
    tally = gathered.tally
    for source in gathered.sources:
        if source.num_without_required == source.num_read:
            columns = ", ".join(tally.data.clean.required) if tally.data.clean else ""
            text = f"every row lacks one of the columns of data.clean.required: {columns}"
            return [Problem(text, source.source.path, "correct the names, or leave the column out of `required`")]
    for part in ("train", "eval"):
        sources = [source for source in gathered.sources if source.part == part]
        if sources and not any(source.num_kept for source in sources):
            return [Problem(f"no row of data.{part} is left: {tally.causes_in_words()}", hint=_way_out(tally.data))]
    if not tally.ends_a_turn:
        return [
            Problem(
                "no end-of-turn token is trained in any row, so the model would not learn to stop",
                hint="let the chat template print {{ eos_token }} after the assistant's content (inside its "
                "{% generation %} block, if it has one), and name it in `model.chat_template`",
            )
        ]
    return []


def _way_out(data: DataSection) -> str:
    return "raise `data.max_length`" + (", or take back a rule of `data.clean`" if data.clean else "")


def _repeats(gathered: CollectedRows, train: Split, evaluation: Split) -> list[Finding]:
    assert gathered.seen is not None  # asked by the caller
    num_rows = len(gathered.spool.rows)
    in_train, in_eval = (np.isin(np.arange(num_rows), part.rows) for part in (train, evaluation))
    return gathered.seen.findings(in_train, in_eval)


def _without_effect(source: GatheredSource) -> Finding:
    """Finding for a `leave_out` that matches no row: perhaps a name or value in it is misspelt."""
    given = ", ".join(source.source.leave_out)
    text = f"no row of {source.source.path} holds such a value in: {given}"
    return Finding("leave_out that matches no row", "noted", 0, source.source.path, text, "correct it or take it out")


class _Rows:
    """The gathered rows as they are written: long running text in pieces, where the recipe splits it."""

    def __init__(self, data: DataSection, gathered: CollectedRows) -> None:
        spool = gathered.spool
        longest = int(spool.rows["num_tokens"].max(initial=0))
        self.data = data
        self.written = Pieces(spool, data.max_length) if longest > data.max_length else spool

    def numbers(self, documents: Numbers) -> Numbers:
        """Numbers of the written rows of some documents: those of their pieces, or their own."""
        return self.written.of(documents) if isinstance(self.written, Pieces) else documents

    def pack(self, part: Split) -> tuple[Numbers, np.ndarray]:
        """Numbers in the order in which rows are written, and where each packed row begins."""
        rows = self.numbers(part.rows)
        if not self.data.packing:
            return rows, np.arange(len(rows) + 1)
        order, offsets = plan_packing(self.written.rows["num_tokens"][rows], self.data.max_length)
        return rows[order], offsets


def _report(
    rows: _Rows, gathered: CollectedRows, parts: tuple[Split, Split], packed: tuple[Numbers, np.ndarray]
) -> DataReport:
    """The report without findings and time."""
    data, table = rows.data, rows.written.rows
    train, evaluation = (part.rows for part in parts)
    order, offsets = packed
    num_packed_rows = len(offsets) - 1
    num_tokens = int(table["num_tokens"][order].sum(dtype=np.int64))
    places = num_packed_rows * data.max_length if data.packing else num_tokens
    return DataReport(
        sources=tuple(_source_reports(gathered, parts)),
        findings=(),
        lengths=gathered.tally.lengths,
        num_read=gathered.tally.num_read,
        num_train=len(train),
        num_eval=len(evaluation),
        num_tokens=num_tokens,
        num_trained_tokens=int(table["num_trained_tokens"][order].sum(dtype=np.int64)),
        max_length=data.max_length,
        truncation=data.truncation,
        packing=data.packing,
        num_packed_rows=num_packed_rows,
        fill=num_tokens / places if places else 0.0,
        seconds=0.0,
    )


def _source_reports(gathered: CollectedRows, parts: tuple[Split, Split]) -> Iterator[SourceReport]:
    num_tokens = gathered.spool.rows["num_tokens"]
    for name, part in zip(("train", "eval"), parts, strict=True):
        numbers = [at for at, source in enumerate(gathered.sources) if source.part == name]
        chosen = [part.by_source.get(at, NO_ROWS) for at in numbers]
        all_tokens = [num_tokens] * len(chosen)
        for at, share in zip(numbers, shares(all_tokens, chosen), strict=True):
            source = gathered.sources[at]
            yield SourceReport(
                path=source.source.path,
                part=source.part,
                num_read=source.num_read,
                num_kept=source.num_kept,
                num_rows=share.rows,
                num_tokens=share.tokens,
                share_of_rows=share.share_of_rows,
                share_of_tokens=share.share_of_tokens,
            )
