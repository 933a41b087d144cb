"""The recipe's `data` section: what is read, what is taken out, what is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from qlora_cli.choices import DataFormat
from qlora_cli.recipe.coercions import Day, LeftOut, Names, Number, as_float, as_source
from qlora_cli.recipe.section import Section


class SourceSection(Section):
    """One dataset: a file, a folder or a Hub dataset."""

    path: str = Field(min_length=1)
    """File (.json, .jsonl, .csv, .parquet, .arrow), folder of such files or saved by `datasets`, pattern such as
    `data/train-*.parquet`, Hub dataset id, or files of one: `hf://datasets/owner/name/data/train-*.parquet`."""

    subset: str | None = None
    """Configuration name of a Hub dataset, or the folder of that name in a folder laid out like one."""

    split: str | None = None
    """Split of a Hub dataset, of a saved DatasetDict (both `train` when not given), or of a folder whose files are
    named by split: all of its files are read."""

    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""

    streaming: bool = False
    """Read a Hub dataset row by row over the network instead of downloading it first. Files are always read row by
    row, so memory does not grow with them."""

    format: DataFormat | None = None
    """Layout of a row; detected from the column names when not given."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Format field -> column of this dataset, e.g. `{instruction: question, output: answer}`; a column inside another
    by its path, e.g. `{output: "instances[0].output"}`. A column that is mapped is not read under its own name too."""

    ignore: Names = ()
    """Columns, and keys of messages, that are to have no effect: rows are read as if they were not there."""

    leave_out: LeftOut = Field(default_factory=dict)
    """Column -> value, or list of values: rows that hold it are left out and counted, e.g. `{label: false}`."""

    weight: Number = Field(1.0, gt=0, le=1000)
    """How often each row is seen in an epoch: 2 repeats the source twice, 0.5 takes a random half of its rows. Under
    `data.mix_by` the source's share, relative to the other weights."""


Sources = Annotated[tuple[SourceSection, ...], BeforeValidator(as_source), Field(min_length=1)]


class CleanSection(Section):
    """Rows that are taken out before training. Each is written, with the cause, to `data/rejected.jsonl` of the run."""

    required: Names = ()
    """Columns that must hold something: a row where one is missing, null or blank is taken out."""

    min_chars: int | None = Field(None, ge=1, le=1_000_000_000)
    """Fewest characters of an answer (the last assistant turn, or the completion), spaces around it not counted."""

    max_chars: int | None = Field(None, ge=1, le=1_000_000_000)
    """Most characters of an answer."""

    dedupe: Literal["exact", "near"] | None = None
    """Keep the first of equal rows (exact), or also of those that share most of their words (near: MinHash over
    five-word shingles, Jaccard similarity from 0.8). Rows of `data.eval` count as seen, so none is trained on."""

    strip: bool = False
    """Remove spaces and line ends around the text of every turn."""


class DataSection(Section):
    """Rows in, token rows out."""

    train: Sources
    """Training data: a path, a source, or a list of them."""

    eval: Sources | None = None
    """Held-out data, in the same forms."""

    eval_fraction: Annotated[float, Field(gt=0, lt=1), BeforeValidator(as_float)] | None = None
    """Share of the training rows held out for evaluation, chosen by `training.seed`."""

    max_length: int = Field(2048, ge=8, le=1_048_576)
    """Longest row in tokens; with packing, the length of every packed row."""

    packing: bool = True
    """Put several documents into one row of `max_length` tokens; none attends to another."""

    truncation: Literal["refuse", "drop", "split", "cut_prompt", "cut_middle_turns"] = "refuse"
    """What happens to documents longer than `max_length`: refuse to start; leave them out; split running text into
    pieces of `max_length` tokens (others are refused); take out the middle of the longest prompt text; or take out
    whole exchanges from the middle of the conversation. A cut never touches the last answer, and documents that it
    does not make fit are left out and counted."""

    train_on: Literal["assistant", "last_turn", "all"] = "assistant"
    """What is trained: every assistant turn, only the last one, or every token. A message of its own can say `train:
    false` (or `weight: 0`, as in OpenAI's files) to be read and not trained."""

    row_per: Literal["conversation", "answer"] = "conversation"
    """What one row of training is: a conversation with all its answers, or each answer with what comes before it. A
    row per answer shows training exactly what inference sends where the template prints earlier turns otherwise, for
    example without their thinking; tokens grow with the square of the exchanges."""

    date: Day | None = None
    """Day, as 2026-11-28, that is given to chat templates which print today's date; the day on which the run is started
    when not given. The run keeps it when it is resumed."""

    mix_by: Literal["rows", "tokens"] | None = None
    """Read each source's `weight` as its share of the rows or tokens seen in an epoch, not as repeats."""

    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """Under `mix_by`, as in `datasets.interleave_datasets`: show no row twice, so that large sources are cut
    (first_exhausted), or show every row at least once, so that small sources repeat (all_exhausted)."""

    clean: CleanSection | None = None
    """Rows to take out; none when not given."""
