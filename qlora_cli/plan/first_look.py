"""A look at the data that `qlora init` is to write a recipe for: its format, its columns, the lengths of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from qlora_cli.data.example import Conversation, Example, Place, Row
from qlora_cli.data.read.column_mapping import Suggestion, mapping_hint, suggested_columns
from qlora_cli.data.read.error_text import names_of
from qlora_cli.data.read.formats import resolve_format, to_example
from qlora_cli.data.read.sources import parse_row, read_raw
from qlora_cli.data.rejection import RowError
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError, QloraError
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.base_files import num_positions, read_config
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.one_line import one_line
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.recipe.starter import Choice, StarterValues

NUM_ROWS = 1000
"""Rows that are looked at: the first ones, which takes a second or two."""

CHARS_PER_TOKEN = 4
"""Of English text under the tokenizers of today's models, roughly; only where the base's own is not available."""

LONGEST = 8192
"""Tokens up to which `max_length` follows the longest row."""


@dataclass(frozen=True)
class FirstLook:
    """Facts about the data."""

    path: str
    suggestion: Suggestion
    format: str
    lengths: list[int]
    """Tokens of each row that could be read, sorted."""

    is_estimate: bool
    """Whether they are characters divided by four."""

    positions: int | None
    """Of the base, where its config.json is on this machine."""

    num_rows: int
    num_faulty: int
    first_fault: str

    @property
    def notes(self) -> list[str]:
        """The facts for a person, one line each."""
        columns = f", by {one_line(self.suggestion.columns)}" if self.suggestion.columns else ""
        unread = f"; not read: {names_of(self.suggestion.unread)}" if self.suggestion.unread else ""
        lines = [f"{self.path}: {self.format} rows{columns}{unread}"]
        of = f"of the first {self.num_rows:,} rows" if self.num_rows == NUM_ROWS else f"of {self.num_rows:,} rows"
        reach = f"; the base has {self.positions:,} positions" if self.positions else ""
        how = f" (estimated as characters / {CHARS_PER_TOKEN}, since the base's tokenizer is not on this machine)"
        lines.append(
            f"tokens a row, {of}: half have at most {self._at(0.5):,}, 95% at most {self._at(0.95):,}, "
            f"the longest has {self.lengths[-1]:,}{reach}{how if self.is_estimate else ''}"
        )
        if self.num_faulty:
            lines.append(f"{self.num_faulty:,} of them cannot be read; the first: {self.first_fault}")
        return lines

    def laid_into(self, values: StarterValues | None) -> StarterValues:
        """The values of a starter recipe, with the source and the lengths that were found.

        Args:
            values: planned for a card, whose `max_length` stays; None where there is none.
        """
        settings = self.suggestion.settings
        source = one_line({"path": self.path, **settings} if settings else self.path)
        train = Choice(source, f"{self.format} rows" + (": format field -> column" if self.suggestion.columns else ""))
        values = replace(values, train=train) if values else StarterValues(train=train, max_length=self._max_length())
        too_long = sum(length > int(values.max_length.value) for length in self.lengths)
        if not too_long:
            return values
        why = f"{too_long:,} of {len(self.lengths):,} rows looked at are longer than max_length"
        return replace(values, truncation=Choice("drop", why))

    def _max_length(self) -> Choice:
        longest, default = self.lengths[-1], int(StarterValues().max_length.value)
        wanted = default
        while wanted < min(longest, LONGEST):
            wanted *= 2
        if self.positions is not None and wanted >= self.positions:
            return Choice(f"{self.positions}", "in tokens; the base has no more positions")
        if wanted > default:
            return Choice(f"{wanted}", f"in tokens; the longest row looked at has {longest:,}")
        return StarterValues().max_length

    def _at(self, share: float) -> int:
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))]


def look_at(path: str, base_model: str) -> FirstLook:
    """Read the first rows of a file or folder on this machine, as training would.

    Args:
        path: of the data.
        base_model: its tokenizer counts the tokens, where it is a folder on this machine.

    Raises:
        DataError: if nothing of it can be read, or no column can be taken for what is trained.
    """
    rows, num_faulty, first_fault = _first_rows(path)
    suggestion, format_name = _layout(path, rows)
    examples = []
    for place, row in rows:
        try:
            examples.append(to_example(row, place, format_name, suggestion.columns))
        except RowError as error:
            first_fault = first_fault or str(error.problems[0]).removeprefix("error: ").partition("\n")[0]
            num_faulty += 1
    counted = _counted(examples, base_model)
    config = read_config(Path(base_model))
    return FirstLook(
        path=path,
        suggestion=suggestion,
        format=format_name,
        lengths=sorted(counted or map(_estimated, examples)),
        is_estimate=not counted,
        positions=num_positions(config) if isinstance(config, dict) else None,
        num_rows=len(examples) + num_faulty,
        num_faulty=num_faulty,
        first_fault=first_fault,
    )


def _first_rows(path: str) -> tuple[list[tuple[Place, Row]], int, str]:
    """The first rows that can be parsed, how many cannot, and the first fault."""
    rows, faults = [], []
    for raw in islice(read_raw(SourceSection(path=path)), NUM_ROWS):
        try:
            rows.append((raw.place, parse_row(raw)))
        except RowError as error:
            faults.append(error)
    if not rows:
        raise faults[0]
    return rows, len(faults), str(faults[0]).removeprefix("error: ").partition("\n")[0] if faults else ""


def _layout(path: str, rows: Sequence[tuple[Place, Row]]) -> tuple[Suggestion, str]:
    """The mapping by which the rows are read, an empty one where they need none, and their format."""
    place, first = rows[0]
    contents = [row for _, row in rows]
    suggestion = suggested_columns(contents)
    if suggestion is None:
        hint = mapping_hint(SourceSection(path=path), contents)
        raise DataError(f"no format fits the columns: {names_of(first)}", place=str(place), hint=hint)
    return suggestion, resolve_format(suggestion.format, suggestion.columns, first, place)


def _counted(examples: Sequence[Example], base_model: str) -> list[int]:
    """Tokens of each row by the base's own tokenizer; nothing where it is not here, or its template takes none."""
    if not Path(base_model).is_dir():
        return []
    try:
        renderer = Renderer(load_tokenizer(ModelSection(base_model=base_model)))
        rendered = renderer.render_each(examples)
    except QloraError:
        return []
    return [len(row.input_ids) for row in rendered if not isinstance(row, DataError)]


def _estimated(example: Example) -> int:
    if isinstance(example, Conversation):
        texts = [str(value) for message in example.messages for key, value in message.items() if key != "role"]
        num_chars = sum(map(len, texts)) + len(str(example.tools or ""))
    else:
        num_chars = len(example.prompt) + len(example.completion)
    return max(1, num_chars // CHARS_PER_TOKEN)
