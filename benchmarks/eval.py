"""Batched evaluation beside one question at a time: whether the answers are the same, and how many times as fast.

    make bench-eval
    .venv/bin/python benchmarks/eval.py --base FOLDER --tasks rows.jsonl --questions 64

Without `--base` a small one is made by `qlora tiny`. OpenMP threads wait passively: spinning ones take the cores that
the next small operation needs.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.evaluate.contest import Entrant, model_key
from qlora_cli.evaluate.metrics.table import METRICS
from qlora_cli.evaluate.scores import TaskScores
from qlora_cli.evaluate.tasks.generation import GenerationTask
from qlora_cli.evaluate.tasks.held_out import LossTask
from qlora_cli.evaluate.tasks.task import Subject
from qlora_cli.evaluate.work import Work
from qlora_cli.model.device import precision_of
from qlora_cli.model.tiny import TinyOptions, make_tiny_base
from qlora_cli.model.tuned import TunedSource, load_tuned
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.schema import ModelSection

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measure and print."""
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        base = options.base
        if base is None:
            base = Path(scratch) / "base"
            corpus = (ROOT / "recipes/data/mailbox.txt",)
            make_tiny_base(base, TinyOptions(corpus, vocab_size=1024, steps=options.steps), lambda step, loss: None)
        subject = _subject(base)
        examples = read_examples(SourceSection(path=str(options.tasks)), options.questions)
        _, _ = _timed(subject, examples[:4], options.max_new_tokens, 4)  # the first calls of torch take longer
        alone, seconds_alone = _timed(subject, examples, options.max_new_tokens, 1)
        together, seconds = _timed(subject, examples, options.max_new_tokens, options.batch_size)
    num_different = sum(one != other for one, other in zip(alone.answers, together.answers, strict=True))
    factor = seconds_alone / seconds
    print(
        f"{precision_of(subject.tuned.model)}, {len(examples)} questions, {options.max_new_tokens} new tokens at most"
    )
    print(
        f"one by one {seconds_alone:.1f} s, {options.batch_size} at a time {seconds:.1f} s: {factor:.1f} times as fast"
    )
    print(f"answers that differ: {num_different}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="model folder; a tiny one is made where it is left out")
    parser.add_argument("--tasks", type=Path, default=ROOT / "recipes/data/tickets_test.jsonl")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100, help="of the tiny base")
    return parser.parse_args()


def _subject(base: Path) -> Subject:
    source = TunedSource(base, ModelSection(base_model=str(base), dtype="float32"))
    tuned = load_tuned(source)
    entrant = Entrant("base", "base", source)
    return Subject("base", tuned, model_key(entrant, tuned), Renderer(tuned.tokenizer))


def _timed(subject: Subject, examples: list[Any], max_new_tokens: int, batch_size: int) -> tuple[TaskScores, float]:
    """Answers and losses on the same rows, with nothing kept from another call."""
    tasks = (
        GenerationTask("questions", examples, {"exact_match": METRICS["exact_match"]}, max_new_tokens),
        LossTask("rows", lambda renderer: renderer.render(examples)),
    )
    for task in tasks:
        task.check(subject)
    started = time.perf_counter()
    scores = [task.run(subject, Work(batch_size)) for task in tasks]
    return scores[0], time.perf_counter() - started


if __name__ == "__main__":
    main()
