"""Settings that cannot work together. Each rule names both keys; none changes a value.

A rule sees only what was written, not defaults: a default never contradicts anything. To add a rule: one function
and one line in `RULES`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from qlora_cli.constants import INITS_AGAINST_ROUNDING
from qlora_cli.recipe.data_rules import DATA_RULES
from qlora_cli.recipe.written import Conflict, RawRecipe, at, conflict, is_local_folder, sources

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".gz")


def check_rules(written: RawRecipe) -> list[Conflict]:
    """Every conflict in a recipe."""
    return [found for rule in RULES for found in rule(written)]


def _length(written: RawRecipe) -> Iterator[Conflict]:
    if at(written, "training.num_train_epochs") is not None and at(written, "training.max_steps") is not None:
        text = "'training.max_steps' and 'training.num_train_epochs' both set the length of the run"
        pair = ("training.max_steps", "training.num_train_epochs")
        yield conflict(pair[0], pair[1:], text, "keep one of the two", weaker=pair)


def _intervals(written: RawRecipe) -> Iterator[Conflict]:
    for section, kind in (("training", "save"), ("eval", "eval")):
        strategy, steps = f"{section}.{kind}_strategy", f"{section}.{kind}_steps"
        is_by_steps = at(written, strategy) == "steps"
        if is_by_steps and at(written, steps) is None:
            yield conflict(strategy, (steps,), f"'{strategy}: steps' needs '{steps}'", f"add `{kind}_steps: 100`")
        if not is_by_steps and at(written, steps) is not None:
            text = f"'{steps}' has no effect without '{strategy}: steps'"
            hint = f"add `{kind}_strategy: steps`, or take '{steps}' out"
            yield conflict(steps, (strategy,), text, hint, weaker=(steps,))


def _evaluation_keys(written: RawRecipe) -> Iterator[Conflict]:
    """Keys of `training` that go by the eval loss, where none is measured."""
    patience, threshold = "training.early_stopping_patience", "training.early_stopping_threshold"
    is_measured = at(written, "data.eval") is not None or at(written, "data.eval_fraction") is not None
    for key in (patience, "training.load_best_model_at_end"):
        if not at(written, key):
            continue
        if not is_measured:
            text = f"'{key}' needs 'data.eval' or 'data.eval_fraction'"
            yield conflict(key, ("data.eval", "data.eval_fraction"), text, "add `eval_fraction: 0.05` under `data:`")
        if at(written, "eval.eval_strategy") == "no":
            text = f"'{key}' cannot work with 'eval.eval_strategy: no'"
            yield conflict(key, ("eval.eval_strategy",), text, "write `eval_strategy: epoch` under `eval:`")
    if at(written, threshold) is not None and at(written, patience) is None:
        text = f"'{threshold}' has no effect without '{patience}'"
        hint = f"add `early_stopping_patience: 3`, or take '{threshold}' out"
        yield conflict(threshold, (patience,), text, hint)


def _automatic_batch(written: RawRecipe) -> Iterator[Conflict]:
    batch_size, accumulation = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
    if at(written, batch_size) == "auto" and at(written, accumulation) is None:
        text = f"'{batch_size}: auto' needs '{accumulation}', which then says how many rows a step has"
        yield conflict(batch_size, (accumulation,), text, "add `gradient_accumulation_steps: 16`")


def _warmup(written: RawRecipe) -> Iterator[Conflict]:
    if at(written, "training.lr_scheduler_type") == "constant" and at(written, "training.warmup_ratio"):
        text = "'training.warmup_ratio' has no effect with 'training.lr_scheduler_type: constant'"
        hint = "write `lr_scheduler_type: constant_with_warmup`, or take 'training.warmup_ratio' out"
        key = "training.warmup_ratio"
        yield conflict(key, ("training.lr_scheduler_type",), text, hint, weaker=(key,))


def _quantization(written: RawRecipe) -> Iterator[Conflict]:
    method = "quantization.method"
    if at(written, "lora.use_qalora"):
        yield from _grouped_adapters(written)
    if at(written, method) in ("int", "w4a16"):
        yield from _integers(written, at(written, method))
    else:
        for key in ("quantization.bits", "quantization.group_size"):
            if at(written, key) is not None:
                text, hint = f"'{key}' has no effect without '{method}: int'", f"add `method: int`, or take '{key}' out"
                yield conflict(key, (method,), text, hint, weaker=(key,))
        if at(written, "quantization.calibration") == "rows":
            key = "quantization.calibration"
            text = f"'{key}: rows' has no effect without '{method}: int'"
            yield conflict(key, (method,), text, f"add `method: int`, or take '{key}' out", weaker=(key,))
        if at(written, "lora.use_qalora") and at(written, "quantization") is not None:
            text = "'lora.use_qalora' needs 'quantization.method: int': PEFT leaves it out on a base of bitsandbytes"
            hint = f"--set {method}=int, or take 'lora.use_qalora' out"
            yield conflict("lora.use_qalora", (method,), text, hint, weaker=("lora.use_qalora",))
    if at(written, "quantization.quant_type") == "int8" and at(written, "quantization.double_quant"):
        text = "'quantization.double_quant: true' cannot work with 'quantization.quant_type: int8'"
        hint = "int8 has no block constants: take 'quantization.double_quant' out"
        key = "quantization.double_quant"
        yield conflict(key, ("quantization.quant_type",), text, hint, weaker=(key,))
    if at(written, "quantization.quant_type") == "int8" and at(written, "quantization.experts"):
        text = "'quantization.experts: true' cannot work with 'quantization.quant_type: int8'"
        hint = "int8 is for linear layers only: write `quant_type: nf4`, or take 'quantization.experts' out"
        key = "quantization.experts"
        yield conflict(key, ("quantization.quant_type",), text, hint, weaker=(key,))


def _integers(written: RawRecipe, name: str) -> Iterator[Conflict]:
    """Keys of bitsandbytes, and of what cannot be done on integers.

    Args:
        name: of the method.
    """
    method = "quantization.method"
    if name == "w4a16" and at(written, "quantization.bits") not in (None, 4):
        text = (
            f"'quantization.bits: {at(written, 'quantization.bits')}' cannot work with '{method}: w4a16', which has 4"
        )
        hint = "take 'quantization.bits' out"
        yield conflict("quantization.bits", (method,), text, hint, weaker=("quantization.bits",))
    for key in ("quantization.quant_type", "quantization.double_quant"):
        if at(written, key) is not None:
            text, hint = f"'{key}' has no effect with '{method}: {name}'", f"take '{key}' out; `bits` says how many"
            yield conflict(key, (method,), text, hint, weaker=(key,))
    if at(written, "quantization.experts"):
        key = "quantization.experts"
        text = f"'{key}: true' cannot work with '{method}: {name}', which is for linear layers"
        yield conflict(key, (method,), text, f"take '{key}' out, or --set {method}=bitsandbytes", weaker=(key,))
    if at(written, "lora.use_dora"):
        text = f"'lora.use_dora' cannot work with '{method}: {name}': DoRA needs the norms of plain weights"
        yield conflict("lora.use_dora", (method,), text, "keep one of the two", weaker=("lora.use_dora",))
    init = at(written, "lora.init_lora_weights")
    if init == "pissa":
        text = (
            f"'lora.init_lora_weights: pissa' cannot work with '{method}: {name}': its residual would be rounded again"
        )
        yield conflict("lora.init_lora_weights", (method,), text, "write `init_lora_weights: default`")


def _grouped_adapters(written: RawRecipe) -> Iterator[Conflict]:
    if at(written, "quantization.group_size") == -1:
        text = "'lora.use_qalora' cannot work with 'quantization.group_size: -1': a row would be one group"
        yield conflict("lora.use_qalora", ("quantization.group_size",), text, "write `group_size: 32`")
    init = at(written, "lora.init_lora_weights")
    if init == "gaussian":
        text = "'lora.init_lora_weights: gaussian' has no effect with 'lora.use_qalora': PEFT draws A by its default"
        hint = "write `init_lora_weights: default`"
        yield conflict("lora.init_lora_weights", ("lora.use_qalora",), text, hint)


def _initial_weights(written: RawRecipe) -> Iterator[Conflict]:
    key, init = "lora.init_lora_weights", at(written, "lora.init_lora_weights")
    is_int8 = at(written, "quantization.method") != "int" and at(written, "quantization.quant_type") == "int8"
    if init in INITS_AGAINST_ROUNDING and (at(written, "quantization") is None or is_int8):
        text = f"'{key}: {init}' needs 'quantization' in 4 bit or fewer: it makes up for that error"
        yield conflict(key, ("quantization",), text, "write `quantization: {}` for NF4, or another init_lora_weights")
    # DoRA takes its magnitudes from the current weight when the adapter is attached; these inits replace that weight.
    if init in (*INITS_AGAINST_ROUNDING, "pissa") and at(written, "lora.use_dora"):
        text = f"'lora.use_dora' cannot work with '{key}: {init}', which replaces the weight that DoRA measures"
        yield conflict("lora.use_dora", (key,), text, "keep one of the two", weaker=("lora.use_dora", key))


def _precision(written: RawRecipe) -> Iterator[Conflict]:
    dtype = at(written, "model.dtype")
    attention = at(written, "model.attn_implementation")
    if dtype == "float16" and at(written, "lora.autocast_adapter_dtype") is False:
        text = "'lora.autocast_adapter_dtype: false' cannot work with 'model.dtype: float16'"
        hint = "float16 adapters lose small updates and cannot be loss-scaled: take autocast_adapter_dtype out"
        key = "lora.autocast_adapter_dtype"
        yield conflict(key, ("model.dtype",), text, hint, weaker=(key,))
    if dtype == "float32" and attention in ("flash_attention_2", "flash_attention_3"):
        text = f"'model.attn_implementation: {attention}' cannot work with 'model.dtype: float32'"
        hint = "write `attn_implementation: sdpa`, or `dtype: bfloat16`"
        key = "model.attn_implementation"
        yield conflict(key, ("model.dtype",), text, hint, weaker=(key,))


def _modules(written: RawRecipe) -> Iterator[Conflict]:
    targets = at(written, "lora.target_modules")
    if targets == []:
        text = "'lora.target_modules' is empty: nothing would be trained"
        yield conflict("lora.target_modules", (), text, "write `target_modules: all-linear`")
    targets = targets if isinstance(targets, list) else []
    saved = at(written, "lora.modules_to_save") or []
    heads = [name for name in targets if name.rpartition(".")[2] == "lm_head"]
    if heads:
        # TRL's fused loss reads lm_head.weight directly, so an adapter there gets no gradient.
        text = f"'lora.target_modules' cannot hold '{heads[0]}': the loss reads its weight past any adapter"
        hint = "take it out; to train the head in full write `modules_to_save: [lm_head]`"
        yield conflict("lora.target_modules", (), text, hint)
    for index, name in enumerate(targets):
        if name in saved:
            text = f"'{name}' is both in 'lora.target_modules' and in 'lora.modules_to_save'"
            hint = "a module gets an adapter or is trained in full: keep one"
            key, other = ("lora", "modules_to_save"), ("lora", "target_modules")
            weaker = ((*key, saved.index(name)), (*other, index))
            yield Conflict(key, text, hint, (".".join(other),), weaker)


def _repeats(written: RawRecipe) -> Iterator[Conflict]:
    """Lists in which a name occurs twice, or is empty."""
    for key in ("lora.target_modules", "lora.modules_to_save", "quantization.skip_modules", "tracking.report_to"):
        names = at(written, key)
        counts = Counter(names if isinstance(names, list) else ())
        if "" in counts:
            yield conflict(key, (), f"'{key}' holds an empty name", "take it out")
        for name in [name for name, count in counts.items() if name and count > 1]:
            yield conflict(key, (), f"'{key}' names '{name}' twice", "keep one of the two")


def _tasks(written: RawRecipe) -> Iterator[Conflict]:
    seen: set[str] = set()
    for path, task in sources(written, "eval.tasks"):
        name = task.get("name") or Path(str(task.get("path", ""))).stem
        if name and name in seen:
            text = f"two tasks of 'eval.tasks' have the name '{name}'"
            yield Conflict(path, text, "give each a `name:` of its own", ("eval.tasks",))
        seen.add(name)
        for metric in [one for one, count in Counter(task.get("metrics", ())).items() if count > 1]:
            text = f"'metrics' of task '{name}' names '{metric}' twice"
            yield Conflict((*path, "metrics"), text, "keep one of the two", ("eval.tasks",))


def _local_files(written: RawRecipe) -> Iterator[Conflict]:
    """Hub keys on something that is not on the Hub."""
    base_model = at(written, "model.base_model")
    if base_model and at(written, "model.revision") is not None and is_local_folder(base_model):
        text = f"'model.revision' has no effect on the local folder of 'model.base_model: {base_model}'"
        key = "model.revision"
        yield conflict(key, ("model.base_model",), text, f"take '{key}' out", weaker=(key,))
    for key in ("data.train", "data.eval"):
        for path, source in sources(written, key):
            where = str(source.get("path", ""))
            is_file = where.endswith(FILE_SUFFIXES) or os.path.isfile(where)
            refused = ("subset", "split", "revision") if is_file else ("subset", "revision")
            for name in refused if is_file or is_local_folder(where) else ():
                if source.get(name) is not None:
                    text = f"'{name}' has no effect on the local path '{where}' of '{key}'"
                    yield Conflict((*path, name), text, f"take '{name}' out", (f"{key}.path",), ((*path, name),))
            if source.get("streaming") and (is_file or is_local_folder(where)):
                text = f"'streaming' has no effect on the local path '{where}' of '{key}'"
                hint = "take 'streaming' out: files are always read row by row"
                yield Conflict((*path, "streaming"), text, hint, (f"{key}.path",), ((*path, "streaming"),))


def _trust(written: RawRecipe) -> Iterator[Conflict]:
    """Code and pickles of the base: only what was looked at, and only where there is something to allow."""
    base_model = str(at(written, "model.base_model") or "")
    is_on_hub = base_model and not is_local_folder(base_model)
    if is_on_hub and at(written, "model.trust_remote_code") and at(written, "model.revision") is None:
        text = f"'model.trust_remote_code' runs whatever code '{base_model}' will hold one day"
        hint = "name the commit whose code you have read: `revision: <hash>` under `model:`"
        yield conflict("model.trust_remote_code", ("model.base_model", "model.revision"), text, hint)
    if base_model and at(written, "model.allow_pickle") and any(Path(base_model).glob("model*.safetensors")):
        text = f"'model.allow_pickle' has no effect: 'model.base_model: {base_model}' has safetensors"
        key = "model.allow_pickle"
        yield conflict(key, ("model.base_model",), text, f"take '{key}' out", weaker=(key,))


def _project(written: RawRecipe) -> Iterator[Conflict]:
    trackers = at(written, "tracking.report_to") or []
    if at(written, "tracking.project") is not None and not set(trackers) & {"wandb", "mlflow", "trackio"}:
        text = "'tracking.project' has no effect: no tracker of 'tracking.report_to' has projects"
        hint = "write `report_to: [wandb]` (or mlflow, trackio), or take 'tracking.project' out"
        key = "tracking.project"
        yield conflict(key, ("tracking.report_to",), text, hint, weaker=(key,))


RULES: tuple[Callable[[RawRecipe], Iterator[Conflict]], ...] = (
    _length,
    _intervals,
    _evaluation_keys,
    _automatic_batch,
    _warmup,
    *DATA_RULES,
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
