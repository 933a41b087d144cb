"""int8 with a low rank against NF4 with higher ones, as they were trained, for docs/quantization.md.

    .venv/bin/python benchmarks/rank.py --base FOLDER --train train.jsonl --test test.jsonl

Each arm has the learning rate that is better for it, by seed 1 on other held-out rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from qalora import judged, loss, said, spread, table
from qalora_models import NF4_BITS, Arm, Record, Setting, held_out, linear_shapes, measured, of_source, recipe

from qlora_cli.api import train
from qlora_cli.model.tuned import find_tuned

PAGE = Path(__file__).resolve().parents[1] / "docs" / "quantization.md"
BEGIN, END = "<!-- made by benchmarks/rank.py -->", "<!-- end of its table -->"
CHOICE_SEED = 1
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


CHOICES = (Choice("int8", 16), Choice("nf4", 16), Choice("nf4", 32), Choice("nf4", 64))


def main() -> None:
    """Train, measure, print the table, and write it into the page."""
    options = _options()
    setting = Setting(
        options.base, options.train, options.test, options.columns, 16, 32, options.steps, 2, 512, 100, 50
    )
    found: dict[Choice, tuple[float, list[Record]]] = {}
    for choice in CHOICES:
        rate = min(options.learning_rates, key=lambda rate: loss(_record(setting, choice, rate, CHOICE_SEED, True)))
        found[choice] = rate, [_record(setting, choice, rate, seed) for seed in options.seeds]
    rows = [_row(setting, choice, *found[choice], found[CHOICES[0]][1]) for choice in CHOICES]
    text = table(HEAD, rows)
    print(text)
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", "utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="model folder in 16 or 32 bit")
    parser.add_argument("--train", type=Path, required=True, help="rows to train on")
    parser.add_argument("--test", type=Path, required=True, help="held-out rows")
    parser.add_argument("--columns", type=json.loads, default={"instruction": "question", "output": "answer"})
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser.parse_args()


def _record(setting: Setting, choice: Choice, rate: float, seed: int, is_for_choice: bool = False) -> Record:
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
