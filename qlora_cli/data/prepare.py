"""From the recipe's data section to token rows for training and evaluation; refuses what cannot be trained on."""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from qlora_cli.data.example import Example
from qlora_cli.data.formats import resolve_format, to_example
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.rendering import Renderer
from qlora_cli.data.sources import read_rows
from qlora_cli.data.token_row import TokenRow
from qlora_cli.errors import DataError, Problem
from qlora_cli.recipe.data_schema import DataSection, SourceSection


@dataclass(frozen=True)
class PreparedData:
    """Token rows, ready to be packed, and what to say about them."""

    train: list[TokenRow]
    """After weights: a row of weight 2 stands here twice."""

    eval: list[TokenRow]
    """Held out; empty where the recipe asks for none."""

    num_rows_read: int
    """Rows of all sources, training and evaluation."""

    num_rows_dropped: int
    """Rows left out because they are longer than `max_length`."""

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the training rows."""
        return sum(len(row.input_ids) for row in self.train)

    @cached_property
    def num_trained_tokens(self) -> int:
        """Tokens of the training rows that carry a label."""
        return sum(row.num_trained_tokens for row in self.train)

    @property
    def trained_share(self) -> float:
        """Trained tokens over all tokens of the training rows."""
        return self.num_trained_tokens / self.num_tokens

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the tokens and labels of all rows, in order."""
        digest = hashlib.sha256()
        for rows in (self.train, self.eval):
            digest.update(array("q", [len(rows)]).tobytes())
            for row in rows:
                digest.update(array("q", [len(row.input_ids), *row.input_ids, *row.labels]).tobytes())
        return digest.hexdigest()


def read_examples(source: SourceSection) -> list[Example]:
    """All rows of a source as examples.

    Raises:
        DataError: the source does not read, or rows do not fit their format (the first 20 in full).
    """
    rows = read_rows(source)
    place, first = rows[0]
    format_name = resolve_format(source.format, source.columns, list(first), place)
    examples: list[Example] = []
    problems = RowProblems()
    for place, row in rows:
        try:
            examples.append(to_example(row, place, format_name, source.columns))
        except DataError as error:
            problems.add_error(error)
    problems.raise_if_any()
    return examples


def prepare_data(data: DataSection, renderer: Renderer, seed: int) -> PreparedData:
    """Read, render, hold out, apply lengths and weights.

    Args:
        data: sources and lengths.
        renderer: of the base model's tokenizer.
        seed: chooses the held-out rows and the rows of a fractional weight.

    Raises:
        DataError: data that cannot be read, or that would teach nothing or the wrong thing.
    """
    train = [renderer.render(read_examples(source)) for source in data.train]
    held_out = [renderer.render(read_examples(source)) for source in data.eval or ()]
    num_rows_read = sum(map(len, train)) + sum(map(len, held_out))
    for rows in (train, held_out):
        _refuse_nothing_to_learn([row for source_rows in rows for row in source_rows])
    if data.truncation == "refuse":
        _refuse_long_rows([row for rows in (*train, *held_out) for row in rows], data.max_length)
    train = [_fitting(rows, data.max_length) for rows in train]
    held_out = [_fitting(rows, data.max_length) for rows in held_out]
    num_rows_dropped = num_rows_read - sum(map(len, train)) - sum(map(len, held_out))
    for rows, key in ((train, "train"), (held_out, "eval")):
        if rows and not any(rows):
            raise DataError(
                f"every row of data.{key} is longer than max_length {data.max_length}",
                hint="raise `data.max_length`",
            )

    eval_rows = _weighted(held_out, data.eval, seed)
    if data.eval_fraction is not None:
        train, split_rows = _hold_out(train, data.eval_fraction, seed)
        eval_rows += split_rows
    train_rows = _weighted(train, data.train, seed)
    if not train_rows:
        raise DataError("no training row is left", hint="raise the `weight` of a source")
    _refuse_no_end_of_turn(train_rows, renderer)
    return PreparedData(train_rows, eval_rows, num_rows_read, num_rows_dropped)


def _fitting(rows: Iterable[TokenRow], max_length: int) -> list[TokenRow]:
    return [row for row in rows if len(row.input_ids) <= max_length]


def _weighted(
    rows_by_source: Sequence[Sequence[TokenRow]], sources: Sequence[SourceSection] | None, seed: int
) -> list[TokenRow]:
    """Each source's rows as often as its weight says: the whole part repeats, the rest is a random sample."""
    weighted: list[TokenRow] = []
    for number, (rows, source) in enumerate(zip(rows_by_source, sources or (), strict=True)):
        fraction, repeats = math.modf(source.weight)
        weighted += [*rows] * int(repeats)
        chosen = random.Random(f"weight {seed} {number}").sample(range(len(rows)), round(fraction * len(rows)))
        weighted += [rows[index] for index in sorted(chosen)]
    return weighted


def _hold_out(
    rows_by_source: list[list[TokenRow]], fraction: float, seed: int
) -> tuple[list[list[TokenRow]], list[TokenRow]]:
    """Training rows that stay, and held-out ones. Rows of the same tokens stay together, so none is in both."""
    documents = list(dict.fromkeys(_key(row) for rows in rows_by_source for row in rows))
    num_held_out = max(1, round(fraction * len(documents)))
    if num_held_out >= len(documents):
        raise DataError(
            f"eval_fraction {fraction} leaves none of {len(documents)} different rows to train on",
            hint="lower `data.eval_fraction` or name a `data.eval` file",
        )
    chosen = set(random.Random(f"eval {seed}").sample(documents, num_held_out))
    train = [[row for row in rows if _key(row) not in chosen] for rows in rows_by_source]
    held_out = {_key(row): row for rows in rows_by_source for row in rows if _key(row) in chosen}
    return train, list(held_out.values())


def _key(row: TokenRow) -> bytes:
    return array("q", row.input_ids).tobytes()


def _refuse_nothing_to_learn(rows: Sequence[TokenRow]) -> None:
    empty = [row for row in rows if not row.num_trained_tokens]
    if not empty:
        return
    problems = RowProblems()
    for row in empty:
        problems.add(
            "the row has nothing to learn: no token of it is trained",
            row.place,
            f"leave out such rows ({len(empty):,} of {len(rows):,}), or use a chat template that prints the "
            "assistant's turns",
        )
    problems.raise_if_any()


def _refuse_long_rows(rows: Sequence[TokenRow], max_length: int) -> None:
    lengths = sorted(len(row.input_ids) for row in rows)
    num_long = sum(length > max_length for length in lengths)
    if not num_long:
        return
    longest = lengths[-1]
    p95 = lengths[math.ceil(0.95 * len(lengths)) - 1]
    first = next(row.place for row in rows if len(row.input_ids) > max_length)
    problem = Problem(
        f"{num_long:,} of {len(rows):,} rows are longer than max_length {max_length:,} "
        f"(longest {longest:,} tokens, 95 % have at most {p95:,}); this is the first",
        str(first),
        f"set `data.max_length: {longest}` to keep all, or `data.truncation: drop` to leave the long rows out",
    )
    raise DataError([problem])


def _refuse_no_end_of_turn(rows: Sequence[TokenRow], renderer: Renderer) -> None:
    """A model that never sees the end of a turn trained does not learn to stop."""
    ends = renderer.end_of_turn_ids
    if any(not ends.isdisjoint(row.labels) for row in rows):
        return
    raise DataError(
        f"no end-of-turn token is trained in any of {len(rows):,} rows, so the model would not learn to stop",
        place=str(rows[0].place),
        hint="let the chat template print {{ eos_token }} after the assistant's content (inside its "
        "{% generation %} block, if it has one), and name it in `model.chat_template`",
    )
