"""Settings of the data that cannot work together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qlora_cli.recipe.written import Conflict, RawRecipe, at, conflict, sources


def _held_out_data(written: RawRecipe) -> Iterator[Conflict]:
    has_eval = at(written, "data.eval") is not None
    has_fraction = at(written, "data.eval_fraction") is not None
    strategy = at(written, "eval.eval_strategy")
    if has_eval and has_fraction:
        text = "'data.eval' and 'data.eval_fraction' both choose the held-out rows"
        pair = ("data.eval_fraction", "data.eval")
        yield conflict(pair[0], pair[1:], text, "keep one of the two", weaker=pair)
    if strategy in ("epoch", "steps") and not has_eval and not has_fraction:
        text = f"'eval.eval_strategy: {strategy}' needs 'data.eval' or 'data.eval_fraction'"
        yield conflict(
            "eval.eval_strategy", ("data.eval", "data.eval_fraction"), text, "add `eval_fraction: 0.05` under `data:`"
        )


def _eval_weight(written: RawRecipe) -> Iterator[Conflict]:
    for path, source in sources(written, "data.eval"):
        if source.get("weight", 1) != 1:
            text = "'weight' has no effect on a source of 'data.eval': each held-out row counts once"
            yield Conflict((*path, "weight"), text, "take 'weight' out", ("data.eval",))


def _mixing(written: RawRecipe) -> Iterator[Conflict]:
    mix_by = at(written, "data.mix_by")
    if mix_by is None and at(written, "data.stopping_strategy") is not None:
        text = "'data.stopping_strategy' has no effect without 'data.mix_by'"
        hint = "add `mix_by: rows` (or tokens), or take 'data.stopping_strategy' out"
        key = "data.stopping_strategy"
        yield conflict(key, ("data.mix_by",), text, hint, weaker=(key,))
    if mix_by is not None and _num_sources(written) == 1:
        text = f"'data.mix_by: {mix_by}' has no effect on the single source of 'data.train': its share is the whole"
        hint = "name a second source, or take 'data.mix_by' out"
        yield conflict("data.mix_by", ("data.train",), text, hint, weaker=("data.mix_by",))


def _rows(written: RawRecipe) -> Iterator[Conflict]:
    train_on = at(written, "data.train_on")
    if at(written, "data.row_per") == "answer" and train_on in ("last_turn", "all"):
        text = f"'data.train_on: {train_on}' cannot work with 'data.row_per: answer', which trains each answer once"
        yield conflict("data.train_on", ("data.row_per",), text, "take 'data.train_on' out")


def _num_sources(written: RawRecipe) -> int:
    """Training sources that are written; one may be written alone, without a list around it."""
    train = at(written, "data.train")
    return len(train) if isinstance(train, list) else int(train is not None)


def _answer_lengths(written: RawRecipe) -> Iterator[Conflict]:
    fewest, most = at(written, "data.clean.min_chars"), at(written, "data.clean.max_chars")
    if fewest is not None and most is not None and fewest > most:
        text = f"'data.clean.min_chars: {fewest}' is more than 'data.clean.max_chars: {most}', so no answer fits"
        yield conflict("data.clean.min_chars", ("data.clean.max_chars",), text, "swap the two")


UNCUT: dict[str, tuple[str, ...]] = {
    "cut_middle_turns": ("alpaca", "text"),
    "cut_prompt": ("text",),
    "split": ("alpaca", "messages", "sharegpt"),
}
"""Way of cutting -> formats in which it finds nothing to cut: one exchange alone, text without a prompt, and what is
no running text."""


def _truncation(written: RawRecipe) -> Iterator[Conflict]:
    how = at(written, "data.truncation")
    found = [source for key in ("data.train", "data.eval") for _, source in sources(written, key)]
    formats = sorted({str(source.get("format")) for source in found})
    if how in UNCUT and _all_sources_are_sections(written) and formats and set(formats) <= set(UNCUT[how]):
        text = f"'data.truncation: {how}' finds nothing to cut in rows of 'format: {' / '.join(formats)}'"
        hint = "write `truncation: split`" if formats == ["text"] else "write `truncation: cut_prompt`, or `drop`"
        yield conflict("data.truncation", ("data.train", "data.eval"), text, hint)


def _all_sources_are_sections(written: RawRecipe) -> bool:
    """A source given as a mere path has no format written: what it holds shows only when it is read."""
    values = (at(written, "data.train"), at(written, "data.eval"))
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return all(item is None or isinstance(item, dict) for item in items)


DATA_RULES: tuple[Callable[[RawRecipe], Iterator[Conflict]], ...] = (
    _held_out_data,
    _eval_weight,
    _mixing,
    _rows,
    _answer_lengths,
    _truncation,
)
