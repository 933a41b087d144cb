"""Results in a terminal: one table for each model that is compared, and below it what a reader must know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qlora_cli.run.eval_results import GENERAL_TEXT, HELD_OUT, EvalResults, Figure, Measure, StoredVerdict, TaskSummary

HIDDEN_RULES = (HELD_OUT, GENERAL_TEXT)
NARROW = 20
"""Characters of a measure's name, so that a table fits 80 columns."""


@dataclass(frozen=True)
class ResultTable:
    """Columns and rows as text."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def as_text(self) -> str:
        """
        >>> print(ResultTable(("measure", "base"), [("loss", "1.234")]).as_text())
        measure   base
        loss      1.234
        """
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("   ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def tables(results: EvalResults) -> Iterator[ResultTable]:
    """A table for each pair of models that is compared; of one model alone where there is none."""
    pairs = list(dict.fromkeys((one.model, one.against) for one in results.verdicts))
    for model, against in pairs:
        told = [one for one in results.measures if model in one.values and not _says_the_same(one)]
        rows = [_row(results, measure, model, against) for measure in told]
        yield ResultTable(("measure", _short(against, 8), _short(model, 8), "difference [95%]", "verdict"), rows)
    compared = {name for pair in pairs for name in pair}
    for alone in [one.name for one in results.models if one.name not in compared]:
        rows = [
            (_name(measure), shown(measure, figure), interval_of(measure, figure), f"{figure.count:,} {measure.over}")
            for measure in results.measures
            if (figure := measure.values.get(alone)) is not None
        ]
        yield ResultTable(("measure", _short(alone, 12), "[95%]", "over"), rows)


def _says_the_same(measure: Measure) -> bool:
    """Whether a measure is left out of the table: of general text the loss says it all."""
    return measure.task == GENERAL_TEXT and measure.measure == "perplexity"


def _row(results: EvalResults, measure: Measure, model: str, against: str) -> tuple[str, ...]:
    before, after = measure.values.get(against), measure.values[model]
    verdict = _verdict(results, measure, model, against)
    values = (_name(measure), shown(measure, before), shown(measure, after))
    if verdict is None:
        return (*values, "", "")
    return (*values, difference(measure, verdict), verdict.outcome)


def _verdict(results: EvalResults, measure: Measure, model: str, against: str) -> StoredVerdict | None:
    if measure.source is not None:
        return None
    wanted = (measure.task, measure.measure, model, against)
    return next(
        (one for one in results.verdicts if (one.task, one.measure, one.model, one.against) == wanted),
        None,
    )


def _name(measure: Measure) -> str:
    """
    >>> _name(Measure("held-out", "loss", False, "nats", "tokens")), _name(Measure("gsm8k", "acc", True, "share", "q"))
    ('loss', 'gsm8k acc')
    """
    words = measure.measure.replace("bits_per_byte", "bits per byte")
    if measure.source is not None:
        return _short(f"  {measure.source.rpartition('/')[2]}: {words}", NARROW)
    return _short(words if measure.task == HELD_OUT else f"{measure.task} {words}", NARROW)


def _short(text: str, width: int) -> str:
    """
    >>> _short("a-very-long-name", 8), _short("short", 8)
    ('a-v...me', 'short')
    """
    if len(text) <= width:
        return text
    end = (width - 3) // 2
    return f"{text[: width - 3 - end]}...{text[len(text) - end :]}"


def shown(measure: Measure, figure: Figure | None) -> str:
    """A figure as tables show it: shares in percent, the rest as it is."""
    if figure is None or figure.value is None:
        return "-"
    return _number(measure, figure.value)


def _number(measure: Measure, value: float) -> str:
    if measure.unit == "share":
        return f"{100 * value:.1f}%"
    if measure.unit == "score":
        return f"{value:.1f}"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1_000_000 else f"{value:.1e}"


def interval_of(measure: Measure, figure: Figure) -> str:
    """The interval of one figure."""
    if figure.low is None or figure.high is None:
        return ""
    return f"[{_number(measure, figure.low)}, {_number(measure, figure.high)}]".replace(" %", "")


def difference(measure: Measure, verdict: StoredVerdict) -> str:
    """A difference with its interval, of shares in percentage points."""
    scale = 100.0 if measure.unit == "share" else 1.0
    value, low, high = (scale * one for one in (verdict.difference, verdict.low, verdict.high))
    digits = 1 if measure.unit in ("share", "score") else 3 if max(abs(value), abs(low), abs(high)) < 1 else 2
    return f"{value:+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def remarks(results: EvalResults) -> Iterator[str]:
    """Verdicts in words, answers that are counted apart, and the rules of scoring."""
    many = len({(one.model, one.against) for one in results.verdicts}) > 1
    for verdict in results.verdicts:
        who = f" ({verdict.model} against {verdict.against})" if many else ""
        yield f"{verdict.task} {verdict.measure.replace('_', ' ')}{who}: {verdict.sentence}"
    for summary in results.tasks:
        yield from _counted_apart(summary)
    told = [one for one in results.measures if one.rule and one.source is None and one.task not in HIDDEN_RULES]
    for rule, measures in _by_rule(told).items():
        yield f"{', '.join(dict.fromkeys(measures))}: {rule}"


def _by_rule(measures: list[Measure]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for measure in measures:
        found.setdefault(str(measure.rule), []).append(measure.measure)
    return found


def _counted_apart(summary: TaskSummary) -> Iterator[str]:
    """
    >>> list(_counted_apart(TaskSummary("gsm8k", 100, {"base": 3}, {"base": 1}, ("acc",), 256)))
    ['gsm8k, base: 3 of 100 cut at 256 tokens (--max-new-tokens), 1 of 100 empty']
    """
    for model in summary.cut:
        num_cut, num_empty = summary.cut[model], summary.empty.get(model, 0)
        parts = [f"{num_cut} of {summary.questions} cut at {summary.max_new_tokens} tokens (--max-new-tokens)"] * (
            num_cut > 0
        )
        parts += [f"{num_empty} of {summary.questions} empty"] * (num_empty > 0)
        if parts:
            yield f"{summary.task}, {model}: {', '.join(parts)}"


def forgotten(results: EvalResults) -> list[str]:
    """A line for each model whose loss on general text is worse beyond its interval."""
    return [
        f"{one.model} has forgotten: its loss on general text is {one.difference:+.3f} against {one.against}, "
        f"[{one.low:+.3f}, {one.high:+.3f}]"
        for one in results.verdicts
        if one.task == GENERAL_TEXT and one.outcome == "worse"
    ]
