"""Every key that a recipe may hold does something: two values of it lead to two different outcomes.

`KEYS` names, for each key of the schema, values and an observer of `keys/observers.py`. Recipes go through the real
reader. A key without a row fails; so does a row without a key.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import pytest

from qlora_cli.errors import QloraError, RecipeError
from qlora_cli.recipe.json_schema import all_keys
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.schema import Recipe
from tests.keys.observers import (
    adapter,
    batches,
    codes,
    default_run_directory,
    eval_batch_sizes,
    eval_tokens,
    identity,
    moments,
    offloading_on_a_gpu,
    optimization,
    optimizer_on_a_gpu,
    recomputing_layers,
    task_results,
    tracker_project,
    train_tokens,
    trained,
    training_texts,
    weights,
)
from tests.keys.scene import set_scene

pytestmark = pytest.mark.slow

BASIC = {
    "name": "basic",
    "model": {"base_model": "base"},
    "lora": {"r": 4, "target_modules": ["q_proj"]},
    "data": {"train": {"path": "sums.jsonl"}, "max_length": 64},
    "training": {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "optim": "adamw_torch",
    },
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    set_scene(folder)
    return folder


@pytest.fixture(autouse=True)
def in_the_scene(scene, monkeypatch):
    monkeypatch.chdir(scene)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(scene / "hub"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(scene / "modules"))

    def recorded(path: str, **asked: Any) -> datasets.Dataset:
        """In place of the download: rows that say what was asked for."""
        return datasets.Dataset.from_list([{"instruction": path, "output": " ".join(map(str, asked.values()))}])

    monkeypatch.setattr(datasets, "load_dataset", recorded)


@dataclass(frozen=True)
class Row:
    """How one key shows."""

    observe: Callable[[Recipe, Path], Any]
    values: tuple[Any, ...]
    """Any two of them are distinguished."""

    given: dict[str, Any] = field(default_factory=dict)
    """Other keys of the recipe."""

    may_refuse: bool = False
    """Whether one of the values means that the run is refused."""


HUB_DATA = {"data.train.path": "org/data"}
HELD_OUT = {"data.eval.path": "others.jsonl"}
HELD_OUT_HUB = {"data.eval.path": "org/data"}
NF4 = {"quantization": {}}
FOUR_STEPS = {"training.max_steps": 4}
EACH_STEP = HELD_OUT | {"eval.eval_strategy": "steps", "eval.eval_steps": 1, "training.max_steps": 5}
BY_EPOCHS = {"training.max_steps": None, "training.num_train_epochs": 1, "data.packing": False}
LONG = {"data.train.path": "long.jsonl", "data.max_length": 200}
TWO_SOURCES = {"data.train": [{"path": "sums.jsonl", "weight": 2}, {"path": "uneven.jsonl", "weight": 1}]}
TWO_SOURCES |= {"data.max_length": 512}
UNEVEN = {"data.train.path": "uneven.jsonl", "data.max_length": 512}
TASK = {"eval.tasks": [{"path": "sums.jsonl", "max_new_tokens": 2}]}
TASK_PAIRS = {"eval.tasks": [{"path": "pairs.jsonl", "max_new_tokens": 2}]}
TASK_CHOICES = {"eval.tasks": [{"path": "choices.jsonl", "max_new_tokens": 2}]}
TASK_BOTH = {"eval.tasks": [{"path": "both.jsonl", "max_new_tokens": 2}]}
COLUMNS = ({"instruction": "ask", "output": "say"}, {"instruction": "say", "output": "ask"})
FLAGGED_TRAIN = {"data.train.path": "flagged.jsonl"}
FLAGGED_EVAL = {"data.eval.path": "flagged.jsonl"}

KEYS: dict[str, Row] = {
    "extends": Row(adapter, (["small.yaml"], ["large.yaml"]), {"lora": None}),
    "name": Row(default_run_directory, ("one", "two")),
    "model.base_model": Row(identity, ("base", "other-base")),
    "model.revision": Row(identity, ("one", "two"), {"model.base_model": "org/name"}),
    "model.trust_remote_code": Row(weights, (False, True), {"model.base_model": "remote-base"}, may_refuse=True),
    "model.allow_pickle": Row(weights, (False, True), {"model.base_model": "pickled-base"}, may_refuse=True),
    "model.dequantize": Row(weights, (False, True), {"model.base_model": "packed-base"}, may_refuse=True),
    "model.dtype": Row(weights, ("float32", "bfloat16")),
    "model.attn_implementation": Row(weights, ("sdpa", "eager")),
    "model.chat_template": Row(train_tokens, (None, "shout.jinja")),
    "quantization.quant_type": Row(weights, ("nf4", "fp4", "int8")),
    "quantization.double_quant": Row(weights, (True, False)),
    "quantization.experts": Row(
        weights, (True, False), {"model.base_model": "mixture", "quantization.quant_type": "nf4"}
    ),
    "quantization.method": Row(weights, ("bitsandbytes", "int", "w4a16"), may_refuse=True),
    "quantization.bits": Row(codes, (4, 3, 2), {"quantization.method": "int"}),
    "quantization.group_size": Row(codes, (-1, 32, 64), {"quantization.method": "int"}),
    "quantization.calibration": Row(codes, ("none", "rows"), {"quantization.method": "int"}),
    "quantization.skip_modules": Row(weights, ([], ["down_proj"])),
    "lora.r": Row(adapter, (4, 8)),
    "lora.lora_alpha": Row(adapter, (8, 16)),
    "lora.lora_dropout": Row(adapter, (0.1, 0.2)),
    "lora.target_modules": Row(adapter, ("all-linear", ["q_proj"])),
    "lora.modules_to_save": Row(adapter, ([], ["embed_tokens"])),
    "lora.use_dora": Row(adapter, (False, True)),
    "lora.use_qalora": Row(adapter, (False, True), {"quantization.method": "int"}),
    "lora.use_rslora": Row(adapter, (False, True)),
    "lora.init_lora_weights": Row(adapter, ("default", "gaussian", "loftq", "calibrated", "pissa"), NF4),
    "lora.autocast_adapter_dtype": Row(adapter, (False, True), {"model.dtype": "bfloat16"}),
    "lora.loraplus_lr_ratio": Row(optimization, (None, 4, 16)),
    "data.train.path": Row(train_tokens, ("sums.jsonl", "others.jsonl")),
    "data.train.subset": Row(train_tokens, ("one", "two"), HUB_DATA),
    "data.train.split": Row(train_tokens, ("train", "test"), {"data.train.path": "saved"}),
    "data.train.revision": Row(train_tokens, ("one", "two"), HUB_DATA),
    "data.train.format": Row(train_tokens, ("messages", "sharegpt"), {"data.train.path": "both.jsonl"}),
    "data.train.columns": Row(train_tokens, COLUMNS, {"data.train.path": "pairs.jsonl"}),
    "data.train.ignore": Row(train_tokens, ([], ["input"]), FLAGGED_TRAIN),
    "data.train.leave_out": Row(train_tokens, ({}, {"flag": True}), FLAGGED_TRAIN),
    "data.train.weight": Row(train_tokens, (0.5, 1, 2)),
    "data.eval.path": Row(eval_tokens, ("sums.jsonl", "others.jsonl")),
    "data.eval.subset": Row(eval_tokens, ("one", "two"), HELD_OUT_HUB),
    "data.eval.split": Row(eval_tokens, ("train", "test"), {"data.eval.path": "saved"}),
    "data.eval.revision": Row(eval_tokens, ("one", "two"), HELD_OUT_HUB),
    "data.eval.format": Row(eval_tokens, ("messages", "sharegpt"), {"data.eval.path": "both.jsonl"}),
    "data.eval.columns": Row(eval_tokens, COLUMNS, {"data.eval.path": "pairs.jsonl"}),
    "data.eval.ignore": Row(eval_tokens, ([], ["input"]), FLAGGED_EVAL),
    "data.eval.leave_out": Row(eval_tokens, ({}, {"flag": True}), FLAGGED_EVAL),
    "data.train.streaming": Row(train_tokens, (False, True), HUB_DATA),
    "data.eval.streaming": Row(eval_tokens, (False, True), HELD_OUT_HUB),
    "data.eval_fraction": Row(eval_tokens, (0.2, 0.5)),
    "data.max_length": Row(batches, (64, 128)),
    "data.packing": Row(batches, (False, True)),
    "data.truncation": Row(train_tokens, ("refuse", "drop", "cut_prompt", "cut_middle_turns"), LONG, may_refuse=True),
    "data.train_on": Row(train_tokens, ("assistant", "last_turn", "all"), {"data.train.path": "talk.jsonl"}),
    "data.row_per": Row(train_tokens, ("conversation", "answer"), {"data.train.path": "talk.jsonl"}),
    "data.date": Row(train_tokens, ("2024-07-26", "2024-07-27"), {"model.chat_template": "dated.jinja"}),
    "data.mix_by": Row(training_texts, (None, "rows", "tokens"), TWO_SOURCES),
    "data.stopping_strategy": Row(
        training_texts, ("first_exhausted", "all_exhausted"), TWO_SOURCES | {"data.mix_by": "rows"}
    ),
    "data.clean.required": Row(training_texts, ([], ["note"]), UNEVEN),
    "data.clean.min_chars": Row(training_texts, (1, 5), UNEVEN),
    "data.clean.max_chars": Row(training_texts, (5, 500), UNEVEN),
    "data.clean.dedupe": Row(training_texts, (None, "exact", "near"), UNEVEN),
    "data.clean.strip": Row(train_tokens, (False, True), UNEVEN),
    "training.learning_rate": Row(optimization, (1e-3, 2e-3)),
    "training.weight_decay": Row(optimization, (0, 0.1)),
    "training.lr_scheduler_type": Row(optimization, ("cosine", "linear", "constant", "constant_with_warmup")),
    "training.warmup_ratio": Row(optimization, (0, 0.1, 0.5)),
    "training.max_grad_norm": Row(moments, (0, 1e-3, 1e-2), {"training.max_steps": 1}),
    "training.num_train_epochs": Row(trained, (1, 1.5), BY_EPOCHS),
    "training.max_steps": Row(trained, (1, 2)),
    "training.per_device_train_batch_size": Row(batches, (1, 2), {"data.packing": False}),
    "training.gradient_accumulation_steps": Row(trained, (1, 2), BY_EPOCHS),
    "training.gradient_checkpointing": Row(recomputing_layers, (False, True)),
    "training.activation_offloading": Row(offloading_on_a_gpu, (False, True)),
    "training.neftune_noise_alpha": Row(moments, (None, 5, 50), {"training.max_steps": 1}),
    "training.optim": Row(
        optimizer_on_a_gpu,
        ("paged_adamw_8bit", "adamw_8bit", "paged_adamw_32bit", "adamw_torch", "adamw_torch_fused"),
    ),
    "training.adam_beta1": Row(optimization, (0.8, 0.9)),
    "training.adam_beta2": Row(optimization, (0.95, 0.999)),
    "training.adam_epsilon": Row(optimization, (1e-8, 1e-6)),
    "training.seed": Row(adapter, (1, 2)),
    "training.logging_steps": Row(trained, (1, 2)),
    "training.save_strategy": Row(
        trained,
        ("no", "steps", "epoch"),
        {"training.max_steps": 7, "data.packing": False, "training.save_total_limit": 9},
    ),
    "training.save_steps": Row(trained, (1, 2), FOUR_STEPS | {"training.save_strategy": "steps"}),
    "training.save_total_limit": Row(
        trained, (1, 2), FOUR_STEPS | {"training.save_strategy": "steps", "training.save_steps": 1}
    ),
    "training.early_stopping_patience": Row(trained, (1, 2), EACH_STEP | {"training.early_stopping_threshold": 100}),
    "training.early_stopping_threshold": Row(trained, (0, 100), EACH_STEP | {"training.early_stopping_patience": 2}),
    "training.load_best_model_at_end": Row(trained, (False, True), EACH_STEP | {"training.save_strategy": "no"}),
    "eval.eval_strategy": Row(trained, ("no", "steps", "epoch"), FOUR_STEPS | HELD_OUT),
    "eval.eval_steps": Row(trained, (1, 2), HELD_OUT | {"eval.eval_strategy": "steps"}),
    "eval.per_device_eval_batch_size": Row(eval_batch_sizes, (2, 3), HELD_OUT | {"data.packing": False}),
    "eval.tasks.path": Row(task_results, ("sums.jsonl", "others.jsonl"), TASK | {"eval.tasks.name": "same"}),
    "eval.tasks.kind": Row(task_results, ("generation", "multiple_choice"), TASK_CHOICES),
    "eval.tasks.name": Row(task_results, ("sums", "additions"), TASK),
    "eval.tasks.format": Row(task_results, ("messages", "sharegpt"), TASK_BOTH),
    "eval.tasks.columns": Row(task_results, COLUMNS, TASK_PAIRS),
    "eval.tasks.metrics": Row(task_results, (["exact_match"], ["number_match"], ["exact_match", "contains"]), TASK),
    "eval.tasks.json_schema": Row(task_results, (None, "schema.json"), TASK | {"eval.tasks.metrics": ["json_valid"]}),
    "eval.tasks.ignore": Row(task_results, ([], ["case"], ["case", "punctuation"]), TASK),
    "eval.tasks.max_new_tokens": Row(task_results, (1, 4), TASK),
    "eval.tasks.limit": Row(task_results, (1, 2), TASK),
    "eval.general_text": Row(task_results, ("shipped", "none"), TASK),
    "tracking.report_to": Row(trained, ([], ["tensorboard"])),
    "tracking.project": Row(tracker_project, ("one", "two"), {"tracking.report_to": ["trackio"]}),
}

ALSO_NEEDED = {"training.save_strategy": "training.save_steps", "eval.eval_strategy": "eval.eval_steps"}
"""Key whose value `steps` needs another key, which no other value may have."""

REFUSED = {"data.eval.weight": (1, 2, HELD_OUT)}
"""Keys that can only be left as they are: the value that is accepted, and one that is refused."""


def put(recipe: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; on the way, a list stands for its first item."""
    *path, last = key.split(".")
    for part in path:
        recipe = recipe.setdefault(part, {})
        recipe = recipe[0] if isinstance(recipe, list) else recipe
    recipe[last] = value
    if value is None:
        del recipe[last]


def read(folder: Path, key: str, value: Any, given: dict[str, Any]) -> Recipe:
    """The basic recipe with these keys, through the real reader; in the scene, since `extends` is relative."""
    values = copy.deepcopy(BASIC)
    for name, setting in {**given, key: value}.items():
        put(values, name, copy.deepcopy(setting))
    if value == "steps":
        put(values, ALSO_NEEDED[key], 1)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))
    return load_recipe(path)


def test_the_table_covers_exactly_the_keys_of_the_schema():
    keys = set(all_keys())
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    assert leaves == set(KEYS) | set(REFUSED)


_outcomes: dict[tuple[Callable, str], Any] = {}
"""Observer and recipe -> what it saw; many keys are compared with the same recipe."""


def observe(scene: Path, folder: Path, key: str, value: Any, *, is_again: bool = False) -> Any:
    """What the observer of a key sees; looked at once for each recipe, unless it is wanted again."""
    row = KEYS[key]
    recipe = read(scene, key, value, row.given)
    asked = row.observe, recipe.model_dump_json()
    if asked in _outcomes and not is_again:
        return _outcomes[asked]
    folder.mkdir()
    try:
        _outcomes[asked] = row.observe(recipe, folder)
    except QloraError as refusal:
        if not row.may_refuse:
            raise
        return str(refusal)
    return _outcomes[asked]


@pytest.mark.parametrize("key", KEYS)
def test_every_value_of_a_key_has_another_outcome(scene, tmp_path, key):
    outcomes = [observe(scene, tmp_path / str(number), key, value) for number, value in enumerate(KEYS[key].values)]
    assert all(one != other for one, other in combinations(outcomes, 2))


@pytest.mark.every(2)
@pytest.mark.parametrize("key", {row.observe: key for key, row in KEYS.items()}.values())
def test_every_observer_sees_the_same_twice(scene, tmp_path, key):
    """Without this the test above would also pass on an outcome that is never twice the same."""
    value = KEYS[key].values[0]
    first = observe(scene, tmp_path / "one", key, value)
    assert first == observe(scene, tmp_path / "two", key, value, is_again=True)


def test_a_revision_reaches_weights_tokenizer_and_fingerprint(scene, tmp_path):
    one, two = (observe(scene, tmp_path / name, "model.revision", name) for name in ("one", "two"))
    assert all(part != other for part, other in zip(one, two, strict=True))


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_would_do_nothing_is_refused(scene, key):
    accepted, refused, given = REFUSED[key]
    read(scene, key, accepted, given)
    with pytest.raises(RecipeError, match=f"'{key.rpartition('.')[2]}' has no effect"):
        read(scene, key, refused, given)
