"""All that a run directory says about its run; whatever is missing or damaged is left out and named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.recipe.yaml_text import parse_yaml
from qlora_cli.report.curve import Curve, curve_of, is_number
from qlora_cli.run.adapter_health import HEALTH_NAME, read_adapter_health
from qlora_cli.run.directory import RunDirectory, run_hint
from qlora_cli.run.eval_results import LOSSES_NAME, RESULTS_NAME, answered_tasks, read_results
from qlora_cli.run.files import read_json_object
from qlora_cli.run.holder import holder_of
from qlora_cli.run.metrics import read_intact_metrics
from qlora_cli.run.overview import status_of
from qlora_cli.secrets import redacted

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""More of a file of answers is not read."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory holds it."""

    path: Path
    status: str
    """training, preparing, died, stopped, finished or not started."""

    manifest: Json = field(default_factory=dict)
    lines: Sequence[Json] = ()
    """Of metrics.jsonl."""

    recipe_text: str = ""
    data_report: Json = field(default_factory=dict)
    first_rows: Json = field(default_factory=dict)
    """The first rows with their mask, as training wrote them."""

    results: Json = field(default_factory=dict)
    answers: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    """Task -> one object a question."""

    losses: Sequence[Json] = ()
    """One object a task, model and row."""

    health: Json = field(default_factory=dict)
    gaps: Sequence[str] = ()
    """Each file that could not be read, and why."""

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or the run was stopped early by its own rule."""
        return self.status == "finished"

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Dotted key -> value; empty where the recipe cannot be read."""
        return _values_of(self.recipe_text)

    def curve(self, key: str) -> Curve:
        """The values of a key of metrics.jsonl."""
        return curve_of(self.lines, key)

    @property
    def num_steps(self) -> int:
        """Optimizer steps done."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def max_steps(self) -> int | None:
        """Optimizer steps of the full run; None where it is not known."""
        value = self.manifest.get("max_steps")
        return int(value) if is_number(value) else None

    @property
    def epochs(self) -> float | None:
        """Passes over the data so far."""
        values = [line["epoch"] for line in self.lines if is_number(line.get("epoch"))]
        return float(values[-1]) if values else None

    def section(self, name: str) -> Json:
        """A section of the manifest; empty where it is missing."""
        value = self.manifest.get(name)
        return value if isinstance(value, dict) else {}

    def number(self, key: str) -> float | None:
        """A number of the recipe; None where it is missing or something else."""
        value = self.recipe.get(key)
        return float(value) if is_number(value) else None


@lru_cache(maxsize=8)
def _values_of(recipe_text: str) -> Mapping[str, Any]:
    """Kept, since a page is written again and again while a run goes on, and reading YAML is half of its cost."""
    root = parse_yaml(recipe_text, "recipe.yaml").root if recipe_text else None
    plain = None if root is None else root.plain()
    return dict(flattened(plain)) if isinstance(plain, dict) else {}


def flattened(values: Mapping[str, Any], prefix: str = "", *, with_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Nested keys joined by dots; with lists, objects in these too.

    >>> dict(flattened({"lora": {"r": 8}, "name": "a"}))
    {'lora.r': 8, 'name': 'a'}
    >>> dict(flattened({"train": [{"path": "a"}]}, with_lists=True))
    {'train[0].path': 'a'}
    """
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.", with_lists=with_lists)
        elif with_lists and isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            for number, each in enumerate(value):
                yield from flattened(each, f"{prefix}{key}[{number}].", with_lists=True)
        else:
            yield f"{prefix}{key}", value


def read_record(run: RunDirectory, *, is_held: bool | None = None) -> RunRecord:
    """Everything that can be read of a run.

    Args:
        run: its directory.
        is_held: whether a process trains it now; None to ask the lock.

    Raises:
        ArgumentError: if the directory holds no run.
    """
    if not run.path.is_dir():
        raise ArgumentError(f"there is no run directory '{run.path}'", hint=run_hint(run.path))
    if not (run.is_started or run.metrics_path.exists() or run.manifest_path.exists()):
        raise ArgumentError(
            f"'{run.path}' is no run directory: it has no recipe.yaml, manifest.json or metrics.jsonl",
            hint=run_hint(run.path),
        )
    gaps: list[str] = []
    lines, num_damaged = read_intact_metrics(run.metrics_path)
    if num_damaged:
        gaps.append(f"metrics.jsonl: {num_damaged:,} damaged {'line is' if num_damaged == 1 else 'lines are'} left out")
    manifest = _object(run.manifest_path, gaps, is_expected=True)
    recorded = manifest.get("status")
    recorded = recorded if isinstance(recorded, str) else ""
    is_held = holder_of(run) is not None if is_held is None else is_held
    return RunRecord(
        path=run.path,
        status=status_of(recorded, is_held=is_held),
        manifest=manifest,
        lines=lines,
        recipe_text=_text(run.recipe_path, gaps),
        data_report=_object(run.data_path / "report.json", gaps, is_expected=True),
        first_rows=_object(run.data_path / "first_rows.json", gaps),
        results=_results(run, gaps),
        answers={task: rows for task, path in answered_tasks(run.eval_path).items() if (rows := _rows(path, gaps))},
        losses=_rows(run.eval_path / LOSSES_NAME, gaps),
        health=_health(run, gaps),
        gaps=gaps,
    )


def _text(path: Path, gaps: list[str]) -> str:
    try:
        return redacted(path.read_text("utf-8", errors="replace"))
    except OSError:
        gaps.append(f"{path.name}: missing")
        return ""


def _object(path: Path, gaps: list[str], *, is_expected: bool = False) -> dict[str, Any]:
    if not path.exists():
        if is_expected:
            gaps.append(f"{path.name}: missing")
        return {}
    try:
        return read_json_object(path, hint="")
    except IdentityError as error:
        gaps.append(f"{path.name}: {error.problems[0].text}")
        return {}


def _results(run: RunDirectory, gaps: list[str]) -> dict[str, Any]:
    """Results of the form that has measures and verdicts; those of an earlier form are named."""
    try:
        results = read_results(run.eval_path)
    except IdentityError as error:
        gaps.append(f"eval/{RESULTS_NAME}: {error.problems[0].text}: `qlora eval` measures again")
        return {}
    return results.as_dict() if results is not None else {}


def _health(run: RunDirectory, gaps: list[str]) -> dict[str, Any]:
    """Figures of the adapter's modules, and what they say in words."""
    try:
        health = read_adapter_health(run.eval_path / HEALTH_NAME)
    except IdentityError as error:
        gaps.append(f"eval/{HEALTH_NAME}: {error.problems[0].text}")
        return {}
    return {} if health is None else health.as_dict()


def _rows(path: Path, gaps: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; none where it is not there."""
    try:
        if path.stat().st_size > MAX_ANSWER_BYTES:
            raise OSError(f"larger than {MAX_ANSWER_BYTES:,} bytes")
        text = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as fault:
        gaps.append(f"{path.name}: {fault}")
        return []
    return [row for line in text.split("\n") if (row := _row(line)) is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
