"""The collected rows that are trained on in an epoch, and those that are evaluated on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qlora_cli.data.collect_rows import CollectedRows
from qlora_cli.data.mixing import hold_out, mix
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import DataSection

Numbers = np.ndarray
"""Row numbers on the spool, int64."""

NO_ROWS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Split:
    """Training or evaluation rows of one epoch."""

    by_source: dict[int, Numbers]
    """Number of the source -> its rows, with repeats."""

    held_out: Numbers
    """Rows that come from the other part's sources."""

    @property
    def rows(self) -> Numbers:
        """All rows, in the order of the sources."""
        return np.concatenate([*self.by_source.values(), self.held_out])


def select(data: DataSection, gathered: CollectedRows, seed: int) -> tuple[Split, Split, Numbers]:
    """The rows to train on, those to evaluate on, and training rows that equal a held-out one and are in neither.

    Raises:
        DataError: if no row is left on a side.
    """
    train, held_out = _rows(gathered, "train"), NO_ROWS
    copies = NO_ROWS
    if data.eval_fraction is not None:
        digests = [gathered.spool.rows["digest"][rows] for rows in train.values()]
        conversations = None if data.row_per == "conversation" else _conversations(gathered, train)
        stay, out = hold_out(digests, data.eval_fraction, seed, conversations)
        held_out = np.concatenate([rows[chosen] for rows, chosen in zip(train.values(), out, strict=True)])
        before = np.concatenate([*train.values()])
        train = {at: rows[chosen] for (at, rows), chosen in zip(train.items(), stay, strict=True)}
        copies = np.setdiff1d(before, np.concatenate([*train.values(), held_out]))
    train = _mixed(gathered, train, seed, data)
    if not sum(map(len, train.values())):
        raise DataError("no training row is left", hint="raise the `weight` of a source")
    return Split(train, NO_ROWS), Split(_mixed(gathered, _rows(gathered, "eval"), seed, None), held_out), copies


def _conversations(gathered: CollectedRows, rows: dict[int, Numbers]) -> np.ndarray:
    """Number of the conversation that each row comes from."""
    table = gathered.spool.rows[np.concatenate([*rows.values()])]
    places = np.stack([table["file"].astype(np.int64), table["line"], table["row"]], axis=1)
    numbers: np.ndarray = np.unique(places, axis=0, return_inverse=True)[1].reshape(-1)
    return numbers


def _rows(gathered: CollectedRows, part: str) -> dict[int, Numbers]:
    """All rows of each source of a part."""
    sources = enumerate(gathered.sources)
    return {at: np.arange(source.rows.start, source.rows.stop) for at, source in sources if source.part == part}


def _mixed(
    gathered: CollectedRows, rows: dict[int, Numbers], seed: int, data: DataSection | None
) -> dict[int, Numbers]:
    """Each source's rows as often as its weight says; shares are for training, held-out rows only repeat."""
    num_tokens = [gathered.spool.rows["num_tokens"][numbers] for numbers in rows.values()]
    weights = [gathered.sources[at].source.weight for at in rows]
    mix_by = data.mix_by if data else None
    strategy = data.stopping_strategy if data else "first_exhausted"
    chosen = mix(num_tokens, weights, mix_by=mix_by, stopping_strategy=strategy, seed=seed)
    return {at: numbers[positions] for (at, numbers), positions in zip(rows.items(), chosen, strict=True)}
