"""int8 with a low rank against NF4 with higher ones, as they were trained, for docs/quantization.md.

    .venv/bin/python benchmarks/rank.py --base FOLDER --train train.jsonl --test test.jsonl

Each arm has the learning rate that is better for it, by seed 1 on other held-out rows.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from qalora import CHOICE_SEED, PAGE, judged, loss, said, setting_of, setting_parser, spread, table, write_between
from qalora_models import NF4_BITS, Arm, Record, Setting, held_out, linear_shapes, measured, of_source, recipe

from qlora_cli.api import train
from qlora_cli.model.tuned import find_tuned

BEGIN, END = "<!-- made by benchmarks/rank.py -->", "<!-- end of its table -->"
HEAD = (
    "base",
    "r",
    "trained",
    "MB with adapter",
    "MB while training",
    "rate",
    "loss",
    "right tokens",
    "loss against int8",
)


@dataclass(frozen=True)
class Choice:
    """A base and a rank."""

    quant_type: str
    r: int


def main() -> None:
    """Train, measure, print the table, and write it into the page."""
    options = setting_parser((__doc__ or "").splitlines()[0], r=16, learning_rates=[1e-3, 3e-3]).parse_args()
    setting = setting_of(options)
    choices = (Choice("int8", setting.r), *(Choice("nf4", factor * setting.r) for factor in (1, 2, 4)))
    found: dict[Choice, tuple[float, list[Record]]] = {}
    for choice in choices:
        losses = {
            rate: loss(_record(setting, choice, rate, CHOICE_SEED, is_for_choice=True))
            for rate in options.learning_rates
        }
        rate = min(losses, key=losses.__getitem__)
        found[choice] = rate, [_record(setting, choice, rate, seed) for seed in options.seeds]
    rows = [_row(setting, choice, *found[choice], found[choices[0]][1]) for choice in choices]
    text = table(HEAD, rows)
    print(text)
    write_between(PAGE, BEGIN, END, text)


def _record(setting: Setting, choice: Choice, rate: float, seed: int, *, is_for_choice: bool = False) -> Record:
    """The trained model on the rows of the table, or on those that choose the learning rate."""
    print(choice, rate, seed, file=sys.stderr, flush=True)
    settings = recipe(replace(setting, r=choice.r), Arm("", "default", None, learning_rate=rate), seed)
    settings["quantization"] = {"quant_type": choice.quant_type}
    rows = held_out(setting)
    with tempfile.TemporaryDirectory() as folder:
        train(settings, run_dir=Path(folder) / "run")
        part = rows[setting.test_rows :] if is_for_choice else rows[: setting.test_rows]
        return measured(part, of_source(find_tuned(Path(folder) / "run")), [])


def _row(
    setting: Setting, choice: Choice, rate: float, records: list[Record], of_int8: list[Record]
) -> tuple[str, ...]:
    shapes = linear_shapes(setting)
    trained = choice.r * sum(inputs + outputs for inputs, outputs in shapes)
    num_rounded = sum(inputs * outputs for inputs, outputs in shapes)
    of_weights = num_rounded * NF4_BITS / 8
    if choice.quant_type == "int8":
        of_weights = num_rounded + 4 * sum(outputs for _, outputs in shapes)
    shares = [100 * sum(record["right"]) / sum(record["tokens"]) for record in records]
    return (
        choice.quant_type,
        str(choice.r),
        f"{trained:,}",
        f"{(of_weights + 4 * trained) / 1e6:.2f}",
        f"{(of_weights + 16 * trained) / 1e6:.2f}",
        f"{rate:g}",
        spread([loss(record) for record in records], 4),
        spread(shares, 2, "%"),
        "" if records is of_int8 else said(judged(of_int8, records)["loss"]),
    )


if __name__ == "__main__":
    main()
