"""Benchmarks of lm-evaluation-harness by name, or from local YAML files, on a model that is loaded already.

The harness is used through its Python API (lm-eval 0.4.13): its tasks, prompts, filters and figures, with the value of
each question beside them, so that two models are compared question by question.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlora_cli import compat
from qlora_cli.data.read.hub import DATASET_FAULTS
from qlora_cli.errors import ArgumentError, DataError
from qlora_cli.evaluate.harness_results import HarnessResult, has_right_choice, read_harness
from qlora_cli.hub import why_offline
from qlora_cli.recipe.reader import YAML_FAULTS
from qlora_cli.recipe.yaml_text import parse_yaml

LOAD_FAULTS = (*DATASET_FAULTS, OSError, ValueError, KeyError, TypeError, AttributeError, TemplateError, *YAML_FAULTS)
"""What loading a task raises: data out of reach, and mistakes in a task's file."""


@dataclass(frozen=True)
class HarnessRequest:
    """Which benchmarks, and how."""

    tasks: tuple[str, ...]
    """Names as lm-eval knows them, or YAML files."""

    num_fewshot: int | None = None
    """Examples before each question; None for what each task says."""

    limit: int | None = None
    """Use only the first `limit` questions of each task."""

    folders: tuple[Path, ...] = ()
    """Folders of tasks of one's own, found by their names."""


@dataclass(frozen=True)
class HarnessTasks:
    """Tasks with their data, ready to run on any number of models."""

    request: HarnessRequest
    loaded: Mapping[str, Any]
    """lm-eval's `tasks`, `groups` and `group_map`."""

    asked: tuple[str, ...]
    """Names of the tasks and groups that were asked for; a tag stands for its tasks."""

    @property
    def num_requests(self) -> int:
        """Requests that a model gets, as far as it can be told: one a question, and of multiple choice one a choice."""
        return sum(map(self._num_requests, self.loaded["tasks"].values()))

    def _num_requests(self, task: Any) -> int:
        docs = task.eval_docs
        count = len(docs) if self.request.limit is None else min(self.request.limit, len(docs))
        if not count or task.OUTPUT_TYPE != "multiple_choice":
            return count
        choices = task.doc_to_choice(docs[0])
        return count * len(choices) if isinstance(choices, list | tuple) else count


def load_harness(request: HarnessRequest) -> HarnessTasks:
    """Find the tasks and load their data, before any model is.

    Only where a name is in none of the request's folders are lm-eval's own tasks listed, which takes 6 seconds.

    Raises:
        ArgumentError: lm-eval is not installed, a name is unknown, or a task needs what is not offered here.
        DataError: a task's file is wrong, or its data cannot be reached.
    """
    try:
        from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
        from lm_eval.tasks import TaskManager
    except ImportError as fault:
        raise ArgumentError(
            f"the benchmark '{request.tasks[0]}' needs the package lm-eval ({fault})", hint="pip install lm-eval"
        ) from fault
    # The seeds of lm-eval's command: some tasks shuffle their choices when they are loaded.
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    folders = [str(folder) for folder in request.folders]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(task_file(name) is None and name not in manager.all_tasks for name in request.tasks):
        manager = TaskManager(include_path=folders)
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    asked: list[str] = []
    for name in dict.fromkeys(request.tasks):
        found = _load_one(manager, name)
        for kind, entries in loaded.items():
            entries.update(found[kind])
        inside = {part for parts in found["group_map"].values() for part in parts}
        asked += [one for one in (*found["groups"], *found["tasks"]) if one not in inside]
    for name, task in loaded["tasks"].items():
        _refuse_unsafe(name, task)
        _refuse_unknown_metrics(name, task)
        _set_examples(task, request.num_fewshot, DEFAULT_OTHER_SEED)
    return HarnessTasks(request, loaded, tuple(asked))


def run_harness(
    tasks: HarnessTasks,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 8,
    on_request: Callable[[int], None] | None = None,
) -> HarnessResult:
    """Ask `model` all questions of the tasks.

    Args:
        tasks: as `load_harness` gives them; they can be run again on another model.
        model: a causal language model in eval mode, with an adapter or without.
        tokenizer: its own.
        batch_size: requests computed together.
        on_request: called with the number of requests that were answered.

    Raises:
        DataError: a task's file asks for something that its rows do not have.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    with compat.calm_lm_eval():
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        if on_request is not None:
            wrapped.set_cache_hook(_Counter(on_request))
        try:
            found = evaluate(
                wrapped,
                tasks.loaded,
                limit=tasks.request.limit,
                bootstrap_iters=0,  # intervals are the verdict's
            )
        except (KeyError, TypeError, TemplateError, IndexError) as fault:
            raise DataError(
                f"the questions cannot be made: {_line(fault)}",
                place=", ".join(tasks.asked),
                hint="look at doc_to_text, doc_to_target and the columns of the data in the task's file",
            ) from fault
    for name, samples in found["samples"].items():
        if not any(map(has_right_choice, samples)):
            raise DataError(
                f"no question's target is one of its choices; the first is {samples[0]['target']!r}",
                place=name,
                hint="doc_to_target in its file must name a column, or be a template, of a choice or its number",
            )
    return read_harness(tasks.asked, found)


class _Counter:
    """Takes the place of lm-eval's cache of answers, which is told of each one."""

    def __init__(self, on_request: Callable[[int], None]) -> None:
        self._on_request = on_request

    def add_partial(self, attr: str, req: object, res: object) -> None:
        """One request was answered."""
        self._on_request(1)


def task_file(name: str) -> Path | None:
    """The YAML file that a task's name is; None for a name."""
    path = Path(name).expanduser()
    return path if path.suffix in (".yaml", ".yml") else None


def group_in(name: str) -> str | None:
    """The group that a YAML file holds, which lm-eval finds by its name alone, among files of its folder."""
    path = task_file(name)
    if path is None or not path.is_file():
        return None
    root = parse_yaml(path.read_text("utf-8", errors="replace"), name).root
    content = None if root is None else root.plain()
    group = content.get("group") if isinstance(content, dict) else None
    return group if isinstance(group, str) else None


def _load_one(manager: Any, name: str) -> Mapping[str, Any]:
    """lm-eval's tasks and groups of one name, tag or file."""
    path = task_file(name)
    if path is not None and not path.is_file():
        raise ArgumentError("there is no such file", place=name, hint=f"check the path (it starts at {Path.cwd()})")
    if path is None and name not in manager.all_tasks:
        close = get_close_matches(name, manager.all_tasks, n=3, cutoff=0.6)
        said = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists them"
        raise ArgumentError(f"lm-eval has no task '{name}'", hint=said)
    reason = why_offline()
    try:
        with compat.calm_lm_eval():
            found: Mapping[str, Any] = manager.load([str(path or name)])
    except ImportError as fault:
        raise ArgumentError(
            f"the task '{name}' needs a package that is not installed: {_line(fault)}", hint="pip install it"
        ) from fault
    except LOAD_FAULTS as fault:
        if reason and isinstance(fault, (*DATASET_FAULTS, OSError)):
            raise DataError(
                f"the data of the task is not in the Hub's cache, and {reason}",
                place=name,
                hint="load it once where there is a network, or give the task a local file (dataset_path: json)",
            ) from fault
        raise DataError(
            f"the task cannot be loaded: {_line(fault)}", place=name, hint="look at its file, and at the data it names"
        ) from fault
    return found


def _refuse_unsafe(name: str, task: Any) -> None:
    """Code that a model wrote is not run, and no pictures are shown."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ArgumentError(
            f"the task '{name}' runs code that the model writes",
            hint="merge, and run `lm-eval --confirm_run_unsafe_code` in a container of its own",
        )
    if getattr(task, "MULTIMODAL", False):
        raise ArgumentError(f"the task '{name}' has pictures or sound in it", hint="choose a task of text")


def _refuse_unknown_metrics(name: str, task: Any) -> None:
    """lm-eval leaves out a metric that it does not know, with a line in its log."""
    from lm_eval.api.registry import metric_registry

    if task.config.process_results is not None:  # its own code gives the figures
        return
    for entry in task.config.metric_list or ():
        metric = entry["metric"]
        if isinstance(metric, str) and not entry.get("hf_evaluate") and metric not in metric_registry:
            raise DataError(f"lm-eval has no metric '{metric}'", place=name, hint="look at metric_list in its file")


def _set_examples(task: Any, num_fewshot: int | None, seed: int) -> None:
    """Number of examples and their choice, by the rules of lm-eval's command: a 0 in a task's file stays 0."""
    stated = task.get_config("num_fewshot")
    if num_fewshot is not None and stated != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif stated is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=seed)


def _line(fault: BaseException) -> str:
    text = " ".join(str(fault).split()) or type(fault).__name__
    return text[:200]
