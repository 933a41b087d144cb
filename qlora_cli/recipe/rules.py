"""Settings that cannot work together. Each rule names both keys; none changes a value.

A rule sees only what was written, not defaults: a default never contradicts anything. To add a rule: one function
and one line in `RULES`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_cli.recipe.tree import Part

Written = dict[str, Any]
"""The recipe as written, as plain dicts and lists; keys whose values are faulty are left out."""

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".gz")


@dataclass(frozen=True)
class Conflict:
    """Two settings that cannot both hold."""

    path: tuple[Part, ...]
    """The setting to point at."""

    text: str
    hint: str

    others: tuple[str, ...] = ()
    """Dotted paths of the settings that it cannot stand beside."""


def check_rules(written: Written) -> list[Conflict]:
    """Every conflict in a recipe."""
    return [conflict for rule in RULES for conflict in rule(written)]


def _at(written: Written, key: str) -> Any:
    """The value of a dotted key; None where it is not written."""
    value: Any = written
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _conflict(key: str, others: tuple[str, ...], text: str, hint: str) -> Conflict:
    return Conflict(tuple(key.split(".")), text, hint, others)


def _sources(written: Written, key: str) -> Iterator[tuple[tuple[Part, ...], dict[str, Any]]]:
    """Each source or task under a key that is written out as a section, with its path."""
    value = _at(written, key)
    path: tuple[Part, ...] = tuple(key.split("."))
    if isinstance(value, dict):
        yield path, value
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, dict):
            yield (*path, index), item


def _length(written: Written) -> Iterator[Conflict]:
    if _at(written, "training.num_train_epochs") is not None and _at(written, "training.max_steps") is not None:
        text = "'training.max_steps' and 'training.num_train_epochs' both set the length of the run"
        yield _conflict("training.max_steps", ("training.num_train_epochs",), text, "keep one of the two")


def _intervals(written: Written) -> Iterator[Conflict]:
    for section, kind in (("training", "save"), ("eval", "eval")):
        strategy, steps = f"{section}.{kind}_strategy", f"{section}.{kind}_steps"
        is_by_steps = _at(written, strategy) == "steps"
        if is_by_steps and _at(written, steps) is None:
            yield _conflict(strategy, (steps,), f"'{strategy}: steps' needs '{steps}'", f"add `{kind}_steps: 100`")
        if not is_by_steps and _at(written, steps) is not None:
            text = f"'{steps}' has no effect without '{strategy}: steps'"
            yield _conflict(steps, (strategy,), text, f"add `{kind}_strategy: steps`, or take '{steps}' out")


def _warmup(written: Written) -> Iterator[Conflict]:
    if _at(written, "training.lr_scheduler_type") == "constant" and _at(written, "training.warmup_ratio"):
        text = "'training.warmup_ratio' has no effect with 'training.lr_scheduler_type: constant'"
        hint = "write `lr_scheduler_type: constant_with_warmup`, or take 'training.warmup_ratio' out"
        yield _conflict("training.warmup_ratio", ("training.lr_scheduler_type",), text, hint)


def _held_out_data(written: Written) -> Iterator[Conflict]:
    has_eval = _at(written, "data.eval") is not None
    has_fraction = _at(written, "data.eval_fraction") is not None
    strategy = _at(written, "eval.eval_strategy")
    if has_eval and has_fraction:
        text = "'data.eval' and 'data.eval_fraction' both choose the held-out rows"
        yield _conflict("data.eval_fraction", ("data.eval",), text, "keep one of the two")
    if strategy in ("epoch", "steps") and not has_eval and not has_fraction:
        text = f"'eval.eval_strategy: {strategy}' needs 'data.eval' or 'data.eval_fraction'"
        yield _conflict(
            "eval.eval_strategy", ("data.eval", "data.eval_fraction"), text, "add `eval_fraction: 0.05` under `data:`"
        )


def _eval_weight(written: Written) -> Iterator[Conflict]:
    for path, source in _sources(written, "data.eval"):
        if source.get("weight", 1) != 1:
            text = "'weight' has no effect on a source of 'data.eval': each held-out row counts once"
            yield Conflict((*path, "weight"), text, "take 'weight' out", ("data.eval",))


def _mixing(written: Written) -> Iterator[Conflict]:
    mix_by = _at(written, "data.mix_by")
    if mix_by is None and _at(written, "data.stopping_strategy") is not None:
        text = "'data.stopping_strategy' has no effect without 'data.mix_by'"
        hint = "add `mix_by: rows` (or tokens), or take 'data.stopping_strategy' out"
        yield _conflict("data.stopping_strategy", ("data.mix_by",), text, hint)
    if mix_by is not None and _num_sources(written) == 1:
        text = f"'data.mix_by: {mix_by}' has no effect on the single source of 'data.train': its share is the whole"
        yield _conflict("data.mix_by", ("data.train",), text, "name a second source, or take 'data.mix_by' out")


def _num_sources(written: Written) -> int:
    """Training sources that are written; one may stand alone, without a list around it."""
    train = _at(written, "data.train")
    return len(train) if isinstance(train, list) else int(train is not None)


def _answer_lengths(written: Written) -> Iterator[Conflict]:
    fewest, most = _at(written, "data.clean.min_chars"), _at(written, "data.clean.max_chars")
    if fewest is not None and most is not None and fewest > most:
        text = f"'data.clean.min_chars: {fewest}' is more than 'data.clean.max_chars: {most}', so no answer fits"
        yield _conflict("data.clean.min_chars", ("data.clean.max_chars",), text, "swap the two")


UNCUT: dict[str, tuple[str, ...]] = {"cut_middle_turns": ("alpaca", "text"), "cut_prompt": ("text",)}
"""Way of cutting -> formats in which it finds nothing to take out: one exchange alone, and text without a prompt."""


def _truncation(written: Written) -> Iterator[Conflict]:
    how = _at(written, "data.truncation")
    sources = [source for key in ("data.train", "data.eval") for _, source in _sources(written, key)]
    formats = sorted({str(source.get("format")) for source in sources})
    if how in UNCUT and _all_sources_are_sections(written) and formats and set(formats) <= set(UNCUT[how]):
        text = f"'data.truncation: {how}' finds nothing to take out of rows of 'format: {' / '.join(formats)}'"
        hint = "write `truncation: cut_prompt`, or `drop`" if formats != ["text"] else "write `truncation: drop`"
        yield _conflict("data.truncation", ("data.train", "data.eval"), text, hint)


def _all_sources_are_sections(written: Written) -> bool:
    """A source given as a mere path has no format written: what it holds shows only when it is read."""
    values = (_at(written, "data.train"), _at(written, "data.eval"))
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return all(item is None or isinstance(item, dict) for item in items)


def _quantization(written: Written) -> Iterator[Conflict]:
    if _at(written, "quantization.quant_type") == "int8" and _at(written, "quantization.double_quant"):
        text = "'quantization.double_quant: true' cannot work with 'quantization.quant_type: int8'"
        hint = "int8 has no block constants: take 'quantization.double_quant' out"
        yield _conflict("quantization.double_quant", ("quantization.quant_type",), text, hint)


def _initial_weights(written: Written) -> Iterator[Conflict]:
    key, init = "lora.init_lora_weights", _at(written, "lora.init_lora_weights")
    is_4bit = _at(written, "quantization") is not None and _at(written, "quantization.quant_type") != "int8"
    if init == "loftq" and not is_4bit:
        text = f"'{key}: loftq' needs a 4-bit 'quantization' section: it makes up for that error"
        yield _conflict(key, ("quantization",), text, "write `quantization: {}` for NF4, or another init_lora_weights")
    # DoRA takes its magnitudes from the weight at hand when the adapter is attached; both inits replace that weight.
    if init in ("loftq", "pissa") and _at(written, "lora.use_dora"):
        text = f"'lora.use_dora' cannot work with '{key}: {init}', which replaces the weight that DoRA measures"
        yield _conflict("lora.use_dora", (key,), text, "keep one of the two")


def _precision(written: Written) -> Iterator[Conflict]:
    dtype = _at(written, "model.dtype")
    attention = _at(written, "model.attn_implementation")
    if dtype == "float16" and _at(written, "lora.autocast_adapter_dtype") is False:
        text = "'lora.autocast_adapter_dtype: false' cannot work with 'model.dtype: float16'"
        hint = "float16 adapters lose small updates and cannot be loss-scaled: take autocast_adapter_dtype out"
        yield _conflict("lora.autocast_adapter_dtype", ("model.dtype",), text, hint)
    if dtype == "float32" and attention in ("flash_attention_2", "flash_attention_3"):
        text = f"'model.attn_implementation: {attention}' cannot work with 'model.dtype: float32'"
        hint = "write `attn_implementation: sdpa`, or `dtype: bfloat16`"
        yield _conflict("model.attn_implementation", ("model.dtype",), text, hint)


def _modules(written: Written) -> Iterator[Conflict]:
    targets = _at(written, "lora.target_modules")
    if targets == []:
        text = "'lora.target_modules' is empty: nothing would be trained"
        yield _conflict("lora.target_modules", (), text, "write `target_modules: all-linear`")
    targets = targets if isinstance(targets, list) else []
    saved = _at(written, "lora.modules_to_save") or []
    heads = [name for name in targets if name.rpartition(".")[2] == "lm_head"]
    if heads:
        # TRL's fused loss reads lm_head.weight directly, so an adapter there gets no gradient.
        text = f"'lora.target_modules' cannot hold '{heads[0]}': the loss reads its weight past any adapter"
        hint = "take it out; to train the head in full write `modules_to_save: [lm_head]`"
        yield _conflict("lora.target_modules", (), text, hint)
    for name in targets:
        if name in saved:
            text = f"'{name}' is both in 'lora.target_modules' and in 'lora.modules_to_save'"
            hint = "a module gets an adapter or is trained in full: keep one"
            yield _conflict("lora.modules_to_save", ("lora.target_modules",), text, hint)


def _repeats(written: Written) -> Iterator[Conflict]:
    """Lists in which a name stands twice, or is empty."""
    for key in ("lora.target_modules", "lora.modules_to_save", "quantization.skip_modules", "tracking.report_to"):
        names = _at(written, key)
        counts = Counter(names if isinstance(names, list) else ())
        if "" in counts:
            yield _conflict(key, (), f"'{key}' holds an empty name", "take it out")
        for name in [name for name, count in counts.items() if name and count > 1]:
            yield _conflict(key, (), f"'{key}' names '{name}' twice", "keep one of the two")


def _tasks(written: Written) -> Iterator[Conflict]:
    seen: set[str] = set()
    for path, task in _sources(written, "eval.tasks"):
        name = task.get("name") or Path(str(task.get("path", ""))).stem
        if name and name in seen:
            text = f"two tasks of 'eval.tasks' have the name '{name}'"
            yield Conflict(path, text, "give each a `name:` of its own", ("eval.tasks",))
        seen.add(name)
        for metric in [one for one, count in Counter(task.get("metrics", ())).items() if count > 1]:
            text = f"'metrics' of task '{name}' names '{metric}' twice"
            yield Conflict((*path, "metrics"), text, "keep one of the two", ("eval.tasks",))


def _local_files(written: Written) -> Iterator[Conflict]:
    """Hub keys on something that is not on the Hub."""
    base_model = _at(written, "model.base_model")
    if base_model and _at(written, "model.revision") is not None and _is_local_folder(base_model):
        text = f"'model.revision' has no effect on the local folder of 'model.base_model: {base_model}'"
        yield _conflict("model.revision", ("model.base_model",), text, "take 'model.revision' out")
    for key in ("data.train", "data.eval"):
        for path, source in _sources(written, key):
            where = str(source.get("path", ""))
            is_file = where.endswith(FILE_SUFFIXES) or os.path.isfile(where)
            refused = ("subset", "split", "revision") if is_file else ("subset", "revision")
            for name in refused if is_file or _is_local_folder(where) else ():
                if source.get(name) is not None:
                    text = f"'{name}' has no effect on the local path '{where}' of '{key}'"
                    yield Conflict((*path, name), text, f"take '{name}' out", (f"{key}.path",))
            if source.get("streaming") and (is_file or _is_local_folder(where)):
                text = f"'streaming' has no effect on the local path '{where}' of '{key}'"
                hint = "take 'streaming' out: files are always read row by row"
                yield Conflict((*path, "streaming"), text, hint, (f"{key}.path",))


def _trust(written: Written) -> Iterator[Conflict]:
    """Code and pickles of the base: only what was looked at, and only where there is something to allow."""
    base_model = str(_at(written, "model.base_model") or "")
    is_on_hub = base_model and not _is_local_folder(base_model)
    if is_on_hub and _at(written, "model.trust_remote_code") and _at(written, "model.revision") is None:
        text = f"'model.trust_remote_code' runs whatever code '{base_model}' will hold one day"
        hint = "name the commit whose code you have read: `revision: <hash>` under `model:`"
        yield _conflict("model.trust_remote_code", ("model.base_model", "model.revision"), text, hint)
    if base_model and _at(written, "model.allow_pickle") and any(Path(base_model).glob("model*.safetensors")):
        text = f"'model.allow_pickle' has no effect: 'model.base_model: {base_model}' has safetensors"
        yield _conflict("model.allow_pickle", ("model.base_model",), text, "take 'model.allow_pickle' out")


def _is_local_folder(path: str) -> bool:
    return path.startswith((".", "/", "~")) or os.path.isdir(path)


def _project(written: Written) -> Iterator[Conflict]:
    trackers = _at(written, "tracking.report_to") or []
    if _at(written, "tracking.project") is not None and not set(trackers) & {"wandb", "mlflow", "trackio"}:
        text = "'tracking.project' has no effect: no tracker of 'tracking.report_to' has projects"
        hint = "write `report_to: [wandb]` (or mlflow, trackio), or take 'tracking.project' out"
        yield _conflict("tracking.project", ("tracking.report_to",), text, hint)


RULES: tuple[Callable[[Written], Iterator[Conflict]], ...] = (
    _length,
    _intervals,
    _warmup,
    _held_out_data,
    _eval_weight,
    _mixing,
    _answer_lengths,
    _truncation,
    _quantization,
    _initial_weights,
    _precision,
    _modules,
    _repeats,
    _tasks,
    _local_files,
    _trust,
    _project,
)
