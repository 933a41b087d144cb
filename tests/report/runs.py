"""Run directories made by hand: curves of a known shape, and rows that attack the page."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from qlora_cli.run.directory import RunDirectory

HOSTILE = "</script><img src=x onerror=alert(1)><style>*{display:none}</style>\u202e\x1b[2J\"'&"
"""Ends a script, loads a picture, hides the page, turns the direction, moves a cursor, ends an attribute."""

RECIPE = """\
name: made
model: {base_model: org/base}
quantization: {quant_type: nf4}
lora: {r: 16}
training: {learning_rate: 0.0002, warmup_ratio: 0.03, max_grad_norm: 0.3, gradient_accumulation_steps: 4,
  per_device_train_batch_size: 4}
"""


def lines_of(num_steps: int, *, seed: int = 0, every: int = 10) -> list[dict[str, Any]]:
    """A run that learns: the loss falls from 2 to 1 with noise, and so does the eval loss."""
    chance = random.Random(seed)
    lines: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        loss = 1 + math.exp(-5 * step / num_steps)
        values = {"loss": loss + chance.gauss(0, 0.03), "learning_rate": 2e-4 * (1 - step / num_steps)}
        values |= {"grad_norm": 0.4 + chance.random() / 4, "tokens_per_second": 900 + 50 * chance.random()}
        lines.append({"step": step, "epoch": step / 100, **values, "peak_memory_bytes": 2**30})
        if step % every == 0:
            lines.append({"step": step, "epoch": step / 100, "eval_loss": loss + 0.1, "eval_perplexity": 3.0})
    return lines


def write_run(path: Path, lines: list[dict[str, Any]], **manifest: Any) -> RunDirectory:
    """A run directory with these lines and the usual files."""
    run = RunDirectory(path)
    run.data_path.mkdir(parents=True)
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run.recipe_path.write_text(RECIPE, encoding="utf-8")
    values = {
        "written_by": "qlora",
        "status": "finished",
        "base": {"base_model": "org/base", "fingerprint": "0" * 64},
        "versions": {"python": "3.11", "torch": "2.13.0+cpu"},
        "hardware": {"device": "cpu"},
        "started_in": {"directory": "/home/me/my project", "run": "/home/me/my project/runs/made"},
        "max_steps": lines[-1]["step"] if lines else 100,
        "memory": {"predicted_bytes": {"allocated": 2**29}, "measured_bytes": {"resident": 2**29}},
    }
    run.manifest_path.write_text(json.dumps({**values, **manifest}), encoding="utf-8")
    report = {
        "lengths": {"histogram": [[1, 50, 3], [50, 100, 9], [100, 150, 1]]},
        "num_train": 1000,
        "num_eval": 50,
        "num_tokens": 9000,
        "num_trained_tokens": 4000,
        "max_length": 128,
    }
    (run.data_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    pieces = [{"text": "Q?", "is_trained": False}, {"text": "A.", "is_trained": True, "is_special": False}]
    rows = {"rows": [{"place": "rows.jsonl:1", "num_tokens": 9, "pieces": pieces}]}
    (run.data_path / "first_rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return run


def add_results(run: RunDirectory, *, text: str = "42", tuned: str = "tuned") -> None:
    """Results of an evaluation of ten questions; `text` stands wherever text can stand."""
    run.eval_path.mkdir()
    figures = {"base": {"value": 0.1, "low": 0.0, "high": 0.4, "count": 10}}
    figures[tuned] = {"value": 0.8, "low": 0.5, "high": 0.95, "count": 10}
    where = {"task": f"sums{text}", "measure": "number_match"}
    verdict = {"model": tuned, "against": "base", "difference": 0.7, "low": 0.3, "high": 0.9, "outcome": "better"}
    verdict |= {"p_value": 0.01, "p_adjusted": 0.01, "num_questions": 10, "smallest_detectable": 0.3}
    model = {"path": "made", "computed_in": "float32 on cpu"}
    measure = {"unit": "share", "over": "questions", "higher_is_better": True, "rule": text, "source": None}
    results = {
        "format": 2,
        "models": [{"name": "base", "role": "base", **model}, {"name": tuned, "role": "tuned", **model}],
        "measures": [{**where, **measure, "values": figures}],
        "verdicts": [{**where, **verdict, "rows_for_half": 30, "sentence": f"sums: better, {text}"}],
        "tasks": [{"task": "sums", "questions": 10, "cut": {"base": 1, tuned: 0}, "empty": {"base": 0, tuned: 0}}],
    }
    (run.eval_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    rows = [
        {
            "prompt": f"{number}? {text}",
            "reference": text,
            "answers": {"base": f"it is {text}", tuned: f"it was {text}"},
            "scores": {"number_match": {"base": int(number == 9), tuned: int(number < 8)}},
            "ended": {"base": "length", tuned: "end"},
        }
        for number in range(10)
    ]
    answers = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (run.eval_path / "answers-sums.jsonl").write_text(answers, encoding="utf-8")
    modules = [
        {
            "name": f"model.layers.{layer}.self_attn.{kind}_proj{text if layer == 0 else ''}",
            "kind": "lora",
            "update_norm": 0.01 * layer,
            "weight_norm": 1.0,
            "relative_norm": 0.01 * layer,
            "rank_90": 6,
            "magnitude_change": None,
            "has_moved": layer > 0,
            "r": 16,
            "effective_rank": 7.5,
        }
        for layer in range(4)
        for kind in "qkv"
    ]
    health = {"format": 1, "title": "LoRA", "starts_at_zero": True, "modules": modules, "lines": [f"rank: {text}"]}
    (run.eval_path / "adapter_health.json").write_text(json.dumps(health), encoding="utf-8")
