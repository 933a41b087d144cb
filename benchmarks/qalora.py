"""QA-LoRA against QLoRA that is rounded after the merge (Xu et al. 2023, arXiv:2309.14717), for docs/quantization.md.

    make bench-qalora BASE=FOLDER TRAIN=train.jsonl TEST=test.jsonl
    .venv/bin/python benchmarks/qalora.py --base FOLDER --train train.jsonl --test test.jsonl --no-page

As many steps, and as nearly as a rank allows as many trained parameters, on the same rows. Each method gets the
learning rate that is better for it, by one seed and other held-out rows. What is measured is kept in `results.jsonl` of
the work folder, so a stopped benchmark goes on where it was, and several may share the seeds. Q4_K_M is left out where
llama.cpp is not installed (`qlora env gguf`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from qalora_models import BITS, Arm, Record, Setting, base_records, choice_record, ranks, trained_records

from qlora_cli.cache_folder import cache_folder
from qlora_cli.verdict.paired import Paired, judge_pairs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "quantization.md"
BEGIN, END = "<!-- made by benchmarks/qalora.py -->", "<!-- end of what it made -->"

Place = tuple[str, str, float, int]
"""Arm, start, learning rate and seed of a training."""

PLACE = ("arm", "init", "learning_rate", "seed")
BASE: Place = ("base", "", 0.0, 0)
CHOICE = "choice: "
CHOICE_SEED = 1
QLORA = Arm("QLoRA (NF4)", "default", None)
NEAREST = [Arm(f"QA-LoRA (INT{bits})", "default", bits) for bits in BITS]
BY_GPTQ = [Arm(f"QA-LoRA (INT{bits} by GPTQ)", "default", bits, "rows") for bits in BITS]
ARMS = {arm.name: arm for arm in (QLORA, *NEAREST, *BY_GPTQ)}
CHOOSING = QLORA, NEAREST[0]
"""Arms that choose the learning rate of their method."""

INITS = ("default", "calibrated")
HEAD = ("model", "start", "seeds", "MB", "loss", "perplexity", "right tokens", "mean KL")
VERDICT_HEAD = ("first", "second", "start", "loss", "right tokens", "loss, each seed alone")


def main() -> None:
    """Measure what is not measured yet, print the tables, and write the page."""
    options = _options()
    setting = setting_of(options)
    work = options.work or cache_folder("bench-qalora")
    work.mkdir(parents=True, exist_ok=True)
    results = work / "results.jsonl"
    if options.measure:
        _measure_missing(setting, options, results)
    text = report(setting, results)
    print(text)
    if options.page:
        write_between(PAGE, BEGIN, END, text)


def _options() -> argparse.Namespace:
    parser = setting_parser((__doc__ or "").splitlines()[0], r=13, learning_rates=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--inits", nargs="+", choices=INITS, default=list(INITS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="trainings")
    parser.add_argument("--work", type=Path, help="folder for the results")
    parser.add_argument("--no-measure", dest="measure", action="store_false", help="print what is there")
    parser.add_argument("--no-page", dest="page", action="store_false", help="print only")
    return parser.parse_args()


def setting_parser(description: str, *, r: int, learning_rates: list[float]) -> argparse.ArgumentParser:
    """Options of a `Setting`, the learning rates to choose from and the seeds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base", type=Path, required=True, help="model folder in 16 or 32 bit")
    parser.add_argument("--train", type=Path, required=True, help="rows to train on")
    parser.add_argument("--test", type=Path, required=True, help="held-out rows")
    parser.add_argument("--columns", type=json.loads, default={"instruction": "question", "output": "answer"})
    parser.add_argument("--r", type=int, default=r, help="lowest rank of LoRA; others follow")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows-per-step", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=learning_rates)
    parser.add_argument("--test-rows", type=int, default=100)
    parser.add_argument("--choice-rows", type=int, default=50, help="rows after them, which choose the learning rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser


def setting_of(options: argparse.Namespace) -> Setting:
    """The setting that options name."""
    return Setting(**{field.name: getattr(options, field.name) for field in fields(Setting)})


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", "utf-8")


def _measure_missing(setting: Setting, options: argparse.Namespace, results: Path) -> None:
    """Append the records of each training that has none; those of one training are written together."""
    if not _placed(setting, results, BASE):
        _append(results, setting, BASE, base_records(setting))
    for arm, rate in product(CHOOSING, options.learning_rates):
        place = (CHOICE + arm.name, arm.init, rate, CHOICE_SEED)
        if not _placed(setting, results, place):
            with _announced(place, results) as folder:
                record = choice_record(setting, replace(arm, learning_rate=rate), CHOICE_SEED, folder)
                _append(results, setting, place, [record])
    for init, seed, arm in product(options.inits, options.seeds, map(ARMS.__getitem__, options.arms)):
        if init != arm.init and arm in BY_GPTQ:
            continue
        rate = _rate(_kept(setting, results), CHOOSING[arm.bits is not None].name)
        place = (arm.name, init, rate, seed)
        if not _placed(setting, results, place):
            with _announced(place, results) as folder:
                chosen = replace(arm, init=init, learning_rate=rate)
                _append(results, setting, place, trained_records(setting, chosen, seed, folder))


def _rate(records: Sequence[Record], arm: str) -> float:
    """The learning rate whose model has the lowest loss on the rows of the choice."""
    return float(min(_choices(records, arm), key=loss)["learning_rate"])


def _choices(records: Sequence[Record], arm: str) -> list[Record]:
    """By learning rate."""
    found = [one for one in records if one["arm"] == CHOICE + arm]
    return sorted(found, key=lambda one: float(one["learning_rate"]))


def loss(record: Record) -> float:
    """In nats a token."""
    return float(sum(record["nats"]) / sum(record["tokens"]))


@contextmanager
def _announced(place: Place, results: Path) -> Iterator[Path]:
    print(*place, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=results.parent) as folder:
        yield Path(folder)


def _placed(setting: Setting, results: Path, place: Place) -> list[Record]:
    """Records of one training."""
    return [one for one in _kept(setting, results) if tuple(one[key] for key in PLACE) == place]


def _append(results: Path, setting: Setting, place: Place, records: Iterable[Record]) -> None:
    common = {"setting": _identity(setting), **dict(zip(PLACE, place, strict=True))}
    lines = [json.dumps(common | record) + "\n" for record in records]
    with results.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def _kept(setting: Setting, results: Path) -> list[Record]:
    """Records of this setting."""
    if not results.is_file():
        return []
    identity = _identity(setting)
    records = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    return [record for record in records if record["setting"] == identity]


def _identity(setting: Setting) -> str:
    values = {field.name: str(getattr(setting, field.name)) for field in fields(setting)}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def report(setting: Setting, results: Path) -> str:
    """Both tables, with what they stand on."""
    kept = _kept(setting, results)
    names = [arm.name for arm in CHOOSING]
    rates = {name: _rate(kept, name) for name in names}
    of_arm = {name: rates[names[arm.bits is not None]] for name, arm in ARMS.items()}
    records = [one for one in kept if one["learning_rate"] == of_arm.get(one["arm"], BASE[2])]
    (r, trained), (grouped_r, grouped_trained) = ranks(setting)
    tried = [f"{name} {one['learning_rate']:g}: {loss(one):.4f}" for name in names for one in _choices(kept, name)]
    return "\n\n".join(
        [
            f"{setting.steps} steps of {setting.rows_per_step} packed rows of {setting.max_length} tokens, groups of "
            f"{setting.group_size}, float32. QLoRA: r {r}, {trained:,} trained parameters, learning rate "
            f"{rates[names[0]]:g}; QA-LoRA: r {grouped_r}, {grouped_trained:,}, {rates[names[1]]:g}. Each has the "
            f"learning rate of the lowest loss on {setting.choice_rows} other rows ({'; '.join(tried)}). Measured on "
            f"the answers of {setting.test_rows} held-out rows. ± is the standard deviation over seeds; KL is in nats "
            "a token, from the model as it was trained, for the base from its 16 bits.",
            table(HEAD, list(_model_rows(records))),
            "Verdicts on the same rows, of each row its mean over seeds: the second model against the first, with the "
            "95% interval of the difference.",
            table(VERDICT_HEAD, list(_verdicts(records))),
        ]
    )


def _model_rows(records: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    for init in ("", *INITS):
        models = dict.fromkeys(record["model"] for record in records if record["init"] == init)
        for model in models:
            of_model = [one for one in records if (one["model"], one["init"]) == (model, init)]
            losses = [loss(one) for one in of_model]
            shares = [sum(one["right"]) / sum(one["tokens"]) for one in of_model]
            yield (
                model,
                init,
                str(len(of_model)) if init else "",
                f"{mean(one['megabytes'] for one in of_model):.2f}",
                spread(losses, 4),
                f"{math.exp(mean(losses)):.3f}",
                spread([100 * share for share in shares], 2, "%"),
                f"{mean(one['kl'] for one in of_model):.1e}",
            )


def spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{unit}{deviation}"


def _verdicts(records: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    """QA-LoRA's merged model against QLoRA's, rounded to as many bits, and against Q4_K_M."""
    pairs = [(f"QLoRA (NF4), merged, INT{bits}", f"QA-LoRA (INT{bits}), merged") for bits in BITS]
    for bits, how in product(BITS, ("", " by GPTQ")):
        pairs.append((f"QLoRA (NF4), merged, INT{bits} by GPTQ", f"QA-LoRA (INT{bits}{how}), merged"))
    pairs += [
        ("QLoRA (NF4), merged, Q4_K_M", "QA-LoRA (INT4), merged"),
        ("QLoRA (NF4) + adapter", "QA-LoRA (INT4), merged"),
    ]
    for init in INITS:
        for first, second in pairs:
            before, after = _by_seed(records, first, init), _by_seed(records, second, init)
            seeds = sorted(before.keys() & after.keys())
            if not seeds:
                continue
            together = judged([before[seed] for seed in seeds], [after[seed] for seed in seeds])
            alone = [judged([before[seed]], [after[seed]])["loss"].outcome for seed in seeds]
            yield first, second, init, said(together["loss"]), said(together["right tokens"]), ", ".join(alone)


def _by_seed(records: Sequence[Record], model: str, init: str) -> dict[int, Record]:
    return {one["seed"]: one for one in records if (one["model"], one["init"]) == (model, init)}


def judged(before: Sequence[Record], after: Sequence[Record]) -> dict[str, Any]:
    """A verdict for both measures. A row is one question, however many seeds it was measured with."""
    weights = [float(count) for count in before[0]["tokens"]]

    def paired(name: str, *, higher_is_better: bool) -> Paired:
        values = ([mean(row) for row in zip(*(one[name] for one in side), strict=True)] for side in (before, after))
        return Paired(*values, weights, higher_is_better)

    pairs = {"loss": paired("nats", higher_is_better=False), "right tokens": paired("right", higher_is_better=True)}
    return judge_pairs(pairs)


def said(verdict: Any) -> str:
    return f"{verdict.outcome}: {verdict.difference:+.4f} ({verdict.low:+.4f} to {verdict.high:+.4f})"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


if __name__ == "__main__":
    main()
