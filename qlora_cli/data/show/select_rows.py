"""Rows of a recipe picked to be looked at, each with what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_cli.data.pipeline import RowPipeline, RowResult
from qlora_cli.data.read.column_mapping import Where
from qlora_cli.data.rejection import RejectionReason
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.show.preview import ShownRow
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import DataSection, SourceSection


def pick_rows(
    data: DataSection, renderer: Renderer, num_rows: int, *, row: int | None = None, is_eval: bool = False
) -> Iterator[ShownRow]:
    """The first rows of each source, or one row of the first source.

    Args:
        data: sources and lengths.
        renderer: of the base model's tokenizer.
        num_rows: how many of each source.
        row: number of the one row, from 1.
        is_eval: rows of `data.eval` instead of `data.train`.

    Raises:
        DataError: if a source cannot be read, or what is asked for is not there.
    """
    sources = _sources(data, is_eval=is_eval)
    pipeline = RowPipeline(data, renderer)
    where: Where = "eval" if is_eval else "train"
    alone = len(sources) == 1
    if row is not None:
        found = next(pipeline.preview(sources[0], row - 1, 1, where=where, alone=alone), None)
        if found is None:
            raise DataError(f"the source has no row {row:,}", place=sources[0].path, hint="rows are counted from 1")
        yield _shown(found, data, renderer)
        return
    for source in sources:
        for passage in pipeline.preview(source, 0, num_rows, where=where, alone=alone):
            yield _shown(passage, data, renderer)


def _sources(data: DataSection, *, is_eval: bool) -> tuple[SourceSection, ...]:
    if not is_eval:
        return data.train
    if data.eval is None:
        raise DataError(
            "the recipe names no `data.eval`",
            hint="leave out --eval: rows of `data.eval_fraction` are drawn from the training rows",
        )
    return data.eval


def _shown(passage: RowResult, data: DataSection, renderer: Renderer) -> ShownRow:
    place, rejection = passage.raw.place, passage.rejection
    if rejection is None:
        mark = ""
        if passage.is_cut and data.truncation == "split":
            num_pieces = -(-(passage.num_tokens or 0) // data.max_length)
            mark = f"trained in {num_pieces:,} pieces of at most {data.max_length:,} tokens"
        elif passage.is_cut:
            mark = f"cut from {passage.num_tokens:,} tokens to max_length {data.max_length:,}"
        return ShownRow(place, passage.row, mark=mark)
    if rejection.cause is not RejectionReason.TOO_LONG or passage.example is None:
        return ShownRow(place, None, rejection, mark=f"not trained on: {rejection.cause}")
    [row] = renderer.render([passage.example])
    fate = "refused" if data.truncation in ("refuse", "split") else "left out"
    return ShownRow(place, row, mark=f"{rejection.cause} {data.max_length:,}: {fate}")
