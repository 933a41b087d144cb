"""How often verdicts are right: coverage of their intervals, false alarms and power, where the truth is known.

    .venv/bin/python benchmarks/verdicts.py                  print the tables, and write them into docs/evaluation.md
    .venv/bin/python benchmarks/verdicts.py --repetitions 200 --no-page

Right and wrong answers are not simulated: the probability of every outcome is summed up. Losses and scores are, with
1,999 resamples in place of the 9,999 of a verdict, so that the tables take minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from scipy.special import gammaln

from qlora_cli.verdict import ratios
from qlora_cli.verdict.paired import Paired, judge_pairs
from qlora_cli.verdict.proportions import exact_sign_p_values, score_edges
from qlora_cli.verdict.sensitivity import POWER, of_rows, of_signs, sign_power
from qlora_cli.verdict.wording import LEVEL

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evaluation.md"
BEGIN, END = "<!-- made by benchmarks/verdicts.py -->", "<!-- end of what it made -->"

SIZES = (50, 100, 500, 1319)
"""Questions; GSM8K's test split has 1,319."""

SHARES, GAINS, CORRELATIONS = (0.2, 0.5, 0.8), (0.0, 0.05, 0.1), (0.2, 0.5, 0.8)
"""Share of right answers before, what is added to it, and correlation of the two models' answers."""

FEW_CHANGED = 8
"""Expected number of questions that change, below which a distribution of whole numbers has no 95%."""

GSM8K = (27, 47, 53, 59, 65, 70, 74, 80, 86, 91, 97, 102, 109, 116, 123, 131, 140, 150, 166, 187, 318)
ALPACA = (1, 10, 14, 18, 25, 33, 45, 61, 81, 106, 142, 176, 209, 247, 294, 344, 392, 436, 487, 551, 839)
"""Quantiles, 5% apart, of the answers' tokens in GSM8K's test split and in 999 rows of Alpaca, 4,096 tokens known."""


@dataclass(frozen=True)
class Population:
    """Rows to draw from."""

    title: str
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    """Differences and weights of so many rows."""

    is_score: bool = False


def lengths(random: np.random.Generator, count: int, quantiles: tuple[int, ...]) -> np.ndarray:
    """Row lengths with those quantiles."""
    return np.round(np.interp(random.random(count), np.linspace(0, 1, len(quantiles)), quantiles))


def even_losses(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A loss that falls by 0.05 nats a token, each token for itself."""
    tokens = lengths(random, count, GSM8K)
    return -0.05 * tokens + 0.5 * np.sqrt(tokens) * random.normal(size=count), tokens


def skewed_losses(random: np.random.Generator, count: int, quantiles: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A loss that falls much on a few rows and rises a little on most."""
    tokens = lengths(random, count, quantiles)
    return tokens * (0.15 - 0.2 * random.exponential(size=count)), tokens


def format_losses(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A loss that falls by 2 nats at the start of each answer, however long it is."""
    tokens = lengths(random, count, ALPACA)
    return -(2 + 0.02 * tokens) * random.gamma(2, 0.5, count), tokens


def scores(random: np.random.Generator, count: int, unchanged: float) -> tuple[np.ndarray, np.ndarray]:
    """ROUGE-like scores, of which a share stays the same."""
    before = random.beta(2, 3, count)
    after = np.where(random.random(count) < unchanged, before, random.beta(2.4, 3, count))
    return after - before, np.ones(count)


POPULATIONS = (
    Population("loss, lengths of GSM8K, even", even_losses),
    Population("loss, lengths of GSM8K, skewed", lambda random, count: skewed_losses(random, count, GSM8K)),
    Population("loss, lengths of Alpaca, skewed", lambda random, count: skewed_losses(random, count, ALPACA)),
    Population("loss, lengths of Alpaca, first tokens", format_losses),
    Population("score, 60% unchanged", lambda random, count: scores(random, count, 0.6), is_score=True),
    Population("score, 93% unchanged", lambda random, count: scores(random, count, 0.93), is_score=True),
)

Row = tuple[str, ...]


def right_or_wrong() -> Iterator[Row]:
    """A row for each number of questions, over all cells; then one for each cell that is off."""
    off: list[Row] = []
    for size in SIZES:
        gained, lost = _outcomes(size)
        low, high = score_edges(gained, lost, size)
        has_found = (exact_sign_p_values(gained, lost) < LEVEL) & ((low > 0) | (high < 0))
        covers, alarms = [], []
        for share, gain, correlation in product(SHARES, GAINS, CORRELATIONS):
            gains, losses = _cell(share, gain, correlation)
            if losses <= 0:  # two shares that far apart cannot correlate that much
                continue
            probability = _probabilities(gained, lost, size, gains, losses)
            covers.append(float(probability @ ((low <= gains - losses) & (gains - losses <= high))))
            if gain == 0:
                alarms.append(float(probability @ has_found))
            if abs(covers[-1] - 0.95) > 0.01:
                cell = f"{share:.0%} right before, {gain:+.0%}, correlation {correlation}"
                off.append((f"{size:,}", cell, f"{size * (gains + losses):.1f}", f"{covers[-1]:.1%}"))
        power = [_power_at_smallest(size, changed) for changed in (0.05, 0.1, 0.2, 0.4)]
        within = sum(abs(one - 0.95) <= 0.01 for one in covers)
        yield (
            f"{size:,}", f"{np.mean(covers):.1%}", f"{min(covers):.1%} to {max(covers):.1%}",
            f"{within} of {len(covers)}", f"{max(alarms):.1%}", f"{min(power):.0%} to {max(power):.0%}",
        )  # fmt: skip
    yield from off


def losses_and_scores(repetitions: int) -> Iterator[Row]:
    """Coverage, misses on either side, and power at the smallest detectable difference that is said on average."""
    for population, size in product(POPULATIONS, SIZES):
        random = np.random.default_rng(7)
        truth = _truth(population)
        found = []
        for _ in range(repetitions):
            one = ratios.compare_rows(*population.draw(random, size), 1.0 if population.is_score else None)
            said = of_rows(one.standard_error, one.reach, size, LEVEL).smallest
            found.append((one.low - truth, one.high - truth, said))
        low, high, said = np.array(found).T
        # With a true difference of `smallest` the interval would lie so much further from 0, on one side or the other.
        smallest = np.median(said)
        power = np.mean(low + smallest > 0), np.mean(high - smallest < 0)
        print(population.title, size, file=sys.stderr, flush=True)
        yield (
            population.title, f"{size:,}", f"{np.mean((low <= 0) & (high >= 0)):.1%}",
            f"{np.mean(high < 0):.1%}", f"{np.mean(low > 0):.1%}", f"{power[0]:.0%}, {power[1]:.0%}",
        )  # fmt: skip


@cache
def _truth(population: Population) -> float:
    differences, weights = population.draw(np.random.default_rng(3), 10_000_000)
    return float(differences.sum() / weights.sum())


def families(repetitions: int) -> Iterator[Row]:
    """How often any of several measures of two equal models is called better or worse."""
    random = np.random.default_rng(11)
    for size in (100, 500):
        alarms = 0
        for _ in range(repetitions):
            hard = random.normal(size=size)
            pairs = {}
            for index in range(4):
                before, after = (hard + random.normal(size=(2, size)) > 0.2 * index).astype(float)
                pairs[f"task {index}"] = Paired(before, after)
            differences, tokens = skewed_losses(random, size, GSM8K)
            pairs["loss"] = Paired(np.zeros(size), differences + 0.05 * tokens, tokens, higher_is_better=False)
            alarms += any(verdict.outcome != "no evidence" for verdict in judge_pairs(pairs).values())
        yield (f"{size:,}", "4 tasks and a loss", f"{alarms / repetitions:.1%}")


def _cell(share: float, gain: float, correlation: float) -> tuple[float, float]:
    """Probabilities that a question is gained and lost."""
    after = share + gain
    both = share * after + correlation * np.sqrt(share * (1 - share) * after * (1 - after))
    return after - both, share - both


def _outcomes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of numbers of gained and lost questions that is at all likely."""
    most = min(size, 700)
    gained, lost = np.meshgrid(np.arange(most + 1.0), np.arange(most + 1.0))
    is_possible = gained + lost <= most
    return gained[is_possible], lost[is_possible]


def _probabilities(gained: np.ndarray, lost: np.ndarray, size: int, gains: float, losses: float) -> np.ndarray:
    same = size - gained - lost
    ways = gammaln(size + 1) - gammaln(gained + 1) - gammaln(lost + 1) - gammaln(same + 1)
    return np.exp(ways + gained * np.log(gains) + lost * np.log(losses) + same * np.log(1 - gains - losses))


def _power_at_smallest(size: int, changed: float) -> float:
    """Power at the smallest detectable difference that is said of so many questions with that share changed."""
    smallest = of_signs(round(changed * size), size, LEVEL).smallest
    share = max((round(changed * size) + 1) / (size + 2), smallest)
    return sign_power(size, share, smallest, LEVEL)


def table(head: Row, rows: list[Row]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def report(repetitions: int) -> str:
    """All tables with the sentences between them."""
    found = list(right_or_wrong())
    error = np.sqrt(0.95 * 0.05 / repetitions)
    summary, off = [row for row in found if len(row) == 6], [row for row in found if len(row) == 4]
    few = sum(float(row[2]) < FEW_CHANGED for row in off)
    return "\n\n".join(
        [
            f"Right and wrong answers, every possible combination of right before {SHARES}, gain {GAINS} and "
            f"correlation {CORRELATIONS}, probabilities summed over all outcomes:",
            table(("questions", "coverage", "from, to", "within 95 ± 1%", "false alarms, at most", "power"), summary),
            f"Power is that at the smallest detectable difference; {POWER:.0%} is promised. {len(off)} cells are off "
            f"by more than 1%, {few} of them with fewer than {FEW_CHANGED} questions expected to change: numbers "
            "so small have no outcome at 95%.",
            table(("questions", "cell", "expected to change", "coverage"), off),
            f"Losses per token and scores, {repetitions:,} repetitions (standard error of a coverage {error:.1%}):",
            table(
                ("rows", "number", "coverage", "truth above", "truth below", "power up, down"),
                list(losses_and_scores(repetitions)),
            ),
            f"Any false alarm in a family of measures of two equal models, {repetitions // 4:,} repetitions:",
            table(("questions", "family", "any alarm"), list(families(repetitions // 4))),
        ]
    )


def main() -> None:
    """Print the tables, and write them between their marks into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--no-page", action="store_true", help="print only")
    options = parser.parse_args()
    ratios.NUM_RESAMPLES = 1_999
    draw = ratios._resamples
    ratios._resamples = cache(lambda count: list(draw(count)))  # the same resamples, drawn once
    text = report(options.repetitions)
    print(text)
    if not options.no_page:
        page = PAGE.read_text("utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
