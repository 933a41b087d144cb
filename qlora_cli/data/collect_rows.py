"""All rows of all sources, in order: through the pipeline, past the duplicates, onto the spool."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Literal

import numpy as np

from qlora_cli.data.data_statistics import DataStatistics
from qlora_cli.data.duplicate_index import DedupeMode, DuplicateIndex
from qlora_cli.data.example import Place
from qlora_cli.data.pipeline import BatchResult, RowPipeline, as_read
from qlora_cli.data.raw_batches import RawBatch, raw_batches
from qlora_cli.data.rejection import Rejection, RejectionReason
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.spool import Spool
from qlora_cli.data.workers import map_in_order
from qlora_cli.progress import progress
from qlora_cli.recipe.data_schema import DataSection, SourceSection

REJECTED_FILE = "rejected.jsonl"

SplitName = Literal["train", "eval"]


@dataclass
class GatheredSource:
    """One source of the recipe and its rows on the spool."""

    part: SplitName
    source: SourceSection
    num_read: int = 0
    num_kept: int = 0
    first: int = 0
    """Number of its first row on the spool."""

    num_without_required: int = 0
    num_left_out: int = 0
    """Rows that its own `leave_out` takes out."""

    @property
    def rows(self) -> slice:
        """Its rows on the spool."""
        return slice(self.first, self.first + self.num_kept)


@dataclass
class CollectedRows:
    """Every row that can be trained on, and what happened to the others."""

    spool: Spool
    tally: DataStatistics
    sources: list[GatheredSource]
    seen: DuplicateIndex | None
    """None where no duplicates are looked for."""

    files: dict[str, int] = field(default_factory=dict)
    """Name -> number on the spool."""

    def place(self, number: int) -> Place:
        """Origin of a row of the closed spool."""
        row = self.spool.rows[number]
        return Place(list(self.files)[row["file"]], int(row["line"]) or None, int(row["row"]))


def gather_rows(data: DataSection, renderer: Renderer, folder: Path, look_for: DedupeMode | None) -> CollectedRows:
    """Read and render every source; held-out ones first, so that what repeats their rows is found in training.

    Args:
        data: the recipe's section.
        renderer: of the base model's tokenizer.
        folder: takes the spool's files and `rejected.jsonl`.
        look_for: duplicates to note beside those that `data.clean.dedupe` takes out.

    Raises:
        DataError: if a source cannot be read; faults of single rows are counted instead.
    """
    dedupe = data.clean.dedupe if data.clean else None
    kinds = {dedupe, look_for}
    kind: DedupeMode | None = "near" if "near" in kinds else "exact" if "exact" in kinds else None
    sources = [GatheredSource("eval", source) for source in data.eval or ()]
    sources += [GatheredSource("train", source) for source in data.train]
    gathered = CollectedRows(Spool(folder), DataStatistics(data), sources, DuplicateIndex(kind) if kind else None)
    pipeline = RowPipeline(data, renderer, duplicates=kind)
    num_of_part = Counter(item.part for item in sources)
    batches = chain.from_iterable(
        raw_batches(item.source, number, where=item.part, alone=num_of_part[item.part] == 1)
        for number, item in enumerate(sources)
    )
    with (
        (folder / REJECTED_FILE).open("w", encoding="utf-8") as rejected,
        progress("preparing rows", ticks=False) as phase,  # no thread where processes are forked
    ):
        for batch, outcome in map_in_order(pipeline, batches):
            chosen = _without_repeats(gathered, batch, outcome, dedupe)
            _take(gathered, batch, outcome, chosen)
            write_rejections(rejected, outcome.rejections)
            phase.advance(outcome.num_read)
    gathered.spool.close()
    return gathered


def _without_repeats(
    gathered: CollectedRows, batch: RawBatch, outcome: BatchResult, dedupe: DedupeMode | None
) -> np.ndarray:
    """The kept rows that stay; the others become rejections of the outcome."""
    stays = np.ones(len(outcome.kept), bool)
    if gathered.seen is None:
        return stays
    signatures = outcome.signatures or [None] * len(outcome.kept)
    for at, (digest, signature) in enumerate(zip(outcome.digests, signatures, strict=True)):
        if at and outcome.kept[at] == outcome.kept[at - 1] and not stays[at - 1]:
            stays[at] = False  # another answer of the conversation that was just taken out
            continue
        repeated = gathered.seen.see(digest, signature)
        if repeated and (dedupe == "near" or (dedupe and repeated[0] == RejectionReason.EXACT_DUPLICATE)):
            raw = batch.rows[outcome.kept[at]]
            text = f"repeats {gathered.seen.place(repeated[1])}"
            outcome.rejections.append(Rejection(raw.place, repeated[0], text, "", as_read(raw)))
            stays[at] = False
        else:
            gathered.seen.keep(digest, batch.rows[outcome.kept[at]].place, repeated)
    return stays


def _take(gathered: CollectedRows, batch: RawBatch, outcome: BatchResult, chosen: np.ndarray) -> None:
    """Put the chosen rows on the spool, and count."""
    for name in outcome.files:
        gathered.files.setdefault(name, len(gathered.files))
    numbers = np.array([gathered.files[name] for name in outcome.files], np.int32)
    outcome.tokens.rows["file"] = numbers[outcome.tokens.rows["file"]] if len(numbers) else 0
    gathered.spool.append(outcome.tokens.only(chosen))
    source = gathered.sources[batch.source_number]
    if not source.num_read:
        source.first = sum(other.num_kept for other in gathered.sources[: batch.source_number])
    source.num_read += outcome.num_read
    source.num_kept += int(chosen.sum())
    causes = Counter(rejection.cause for rejection in outcome.rejections)
    source.num_without_required += causes[RejectionReason.REQUIRED]
    source.num_left_out += causes[RejectionReason.LEFT_OUT]
    gathered.tally.add(outcome)


def write_rejections(file: IO[str], rejections: Sequence[Rejection]) -> None:
    """Append rows that are not trained on to `rejected.jsonl`."""
    for rejection in rejections:
        line = {"place": str(rejection.place), "cause": rejection.cause.value, "text": rejection.text}
        file.write(json.dumps({**line, "row": rejection.row}, ensure_ascii=False, default=str) + "\n")
