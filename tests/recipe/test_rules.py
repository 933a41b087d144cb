"""Settings that cannot work together: each pair is refused with both names, and works apart."""

from __future__ import annotations

import pytest

from qlora_cli.errors import RecipeError
from qlora_cli.recipe.overrides import parse_override
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.rules import RULES
from qlora_cli.recipe.tree import Node, RecipePlace, merge

CONFLICTS: dict[str, tuple[list[str], list[str]]] = {
    "two lengths": (
        ["training.max_steps=5", "training.num_train_epochs=1"],
        ["training.max_steps", "training.num_train_epochs"],
    ),
    "automatic batches of no number of rows": (
        ["training.per_device_train_batch_size=auto"],
        ["training.per_device_train_batch_size: auto", "training.gradient_accumulation_steps"],
    ),
    "save_steps without steps": (
        ["training.save_steps=5", "training.save_strategy=epoch"],
        ["training.save_steps", "training.save_strategy"],
    ),
    "save steps without save_steps": (["training.save_strategy=steps"], ["training.save_steps"]),
    "eval_steps without steps": (
        ["eval.eval_steps=5", "eval.eval_strategy=epoch", "data.eval=held.jsonl"],
        ["eval.eval_steps", "eval.eval_strategy"],
    ),
    "eval steps without eval_steps": (["eval.eval_strategy=steps", "data.eval=held.jsonl"], ["eval.eval_steps"]),
    "eval without data": (["eval.eval_strategy=epoch"], ["data.eval_fraction"]),
    "patience without held-out rows": (
        ["training.early_stopping_patience=2"],
        ["training.early_stopping_patience", "data.eval", "data.eval_fraction"],
    ),
    "patience without evaluations": (
        ["training.early_stopping_patience=2", "eval.eval_strategy=no", "data.eval_fraction=0.1"],
        ["training.early_stopping_patience", "eval.eval_strategy: no"],
    ),
    "threshold without patience": (
        ["training.early_stopping_threshold=0.1"],
        ["training.early_stopping_threshold", "training.early_stopping_patience"],
    ),
    "best of no evaluation": (
        ["training.load_best_model_at_end=true"],
        ["training.load_best_model_at_end", "data.eval", "data.eval_fraction"],
    ),
    "best of evaluations that are off": (
        ["training.load_best_model_at_end=true", "eval.eval_strategy=no", "data.eval=held.jsonl"],
        ["training.load_best_model_at_end", "eval.eval_strategy: no"],
    ),
    "two held-out sets": (["data.eval=held.jsonl", "data.eval_fraction=0.1"], ["data.eval", "data.eval_fraction"]),
    "weighted held-out rows": (["data.eval={path: held.jsonl, weight: 2}"], ["weight"]),
    "stopping strategy without mixing": (
        ["data.train=[a.jsonl, b.jsonl]", "data.stopping_strategy=all_exhausted"],
        ["data.stopping_strategy", "data.mix_by"],
    ),
    "turns chosen beside a row for each answer": (
        ["data.row_per=answer", "data.train_on=all"],
        ["data.train_on: all", "data.row_per: answer"],
    ),
    "mix of one source": (["data.mix_by=rows"], ["data.mix_by: rows", "data.train"]),
    "mix of one source in a list": (
        ["data.train=[{path: a.jsonl}]", "data.mix_by=tokens"],
        ["data.mix_by", "data.train"],
    ),
    "answers longer than the longest": (
        ["data.clean={min_chars: 9, max_chars: 8}"],
        ["data.clean.min_chars: 9", "data.clean.max_chars: 8"],
    ),
    "turns of a row that has one": (
        ["data.train={path: a.jsonl, format: alpaca}", "data.truncation=cut_middle_turns"],
        ["data.truncation: cut_middle_turns", "format: alpaca"],
    ),
    "turns of running text": (
        [
            "data.train=[{path: a.jsonl, format: alpaca}, {path: b.jsonl, format: text}]",
            "data.eval={path: c.jsonl, format: text}",
            "data.truncation=cut_middle_turns",
        ],
        ["data.truncation: cut_middle_turns", "format: alpaca / text"],
    ),
    "prompt of running text": (
        ["data.train={path: a.jsonl, format: text}", "data.truncation=cut_prompt"],
        ["data.truncation: cut_prompt", "format: text"],
    ),
    "code of whatever commit": (
        ["model.base_model=org/name", "model.trust_remote_code=true"],
        ["model.trust_remote_code"],
    ),
    "warm-up of a constant": (
        ["training.lr_scheduler_type=constant", "training.warmup_ratio=0.03"],
        ["training.lr_scheduler_type", "training.warmup_ratio"],
    ),
    "double int8": (
        ["quantization.quant_type=int8", "quantization.double_quant=true"],
        ["quantization.quant_type", "quantization.double_quant"],
    ),
    "experts of int8": (
        ["quantization.quant_type=int8", "quantization.experts=true"],
        ["quantization.quant_type", "quantization.experts"],
    ),
    "rows to round by on a base of bitsandbytes": (
        ["quantization={calibration: rows}"],
        ["quantization.calibration: rows", "quantization.method: int"],
    ),
    "LoftQ in 16 bit": (["lora.init_lora_weights=loftq"], ["quantization"]),
    "LoftQ on int8": (
        ["lora.init_lora_weights=loftq", "quantization.quant_type=int8"],
        ["lora.init_lora_weights", "quantization"],
    ),
    "calibrated on int8": (
        ["lora.init_lora_weights=calibrated", "quantization.quant_type=int8"],
        ["lora.init_lora_weights", "quantization"],
    ),
    "PiSSA on integers": (
        ["lora.init_lora_weights=pissa", "quantization.method=int"],
        ["lora.init_lora_weights: pissa", "quantization.method: int"],
    ),
    "calibrated and DoRA": (
        ["lora.init_lora_weights=calibrated", "lora.use_dora=true", "quantization={}"],
        ["lora.init_lora_weights", "lora.use_dora"],
    ),
    "LoftQ and DoRA": (
        ["lora.init_lora_weights=loftq", "lora.use_dora=true", "quantization={}"],
        ["lora.init_lora_weights", "lora.use_dora"],
    ),
    "PiSSA and DoRA": (
        ["lora.init_lora_weights=pissa", "lora.use_dora=true"],
        ["lora.init_lora_weights", "lora.use_dora"],
    ),
    "float16 adapter": (
        ["lora.autocast_adapter_dtype=false", "model.dtype=float16"],
        ["lora.autocast_adapter_dtype", "model.dtype"],
    ),
    "flash attention in float32": (
        ["model.attn_implementation=flash_attention_2", "model.dtype=float32"],
        ["model.attn_implementation", "model.dtype"],
    ),
    "no targets": (["lora.target_modules=[]"], ["lora.target_modules"]),
    "adapter on the head": (["lora.target_modules=[q_proj, lm_head]"], ["lm_head"]),
    "module trained twice": (
        ["lora.target_modules=[q_proj]", "lora.modules_to_save=[q_proj]"],
        ["lora.target_modules", "lora.modules_to_save"],
    ),
    "target named twice": (["lora.target_modules=[q_proj, q_proj]"], ["q_proj"]),
    "empty name": (["quantization.skip_modules=['']"], ["empty name"]),
    "tracker named twice": (["tracking.report_to=[wandb, wandb]"], ["wandb"]),
    "project without tracker": (["tracking.project=chat"], ["tracking.report_to"]),
    "project of a tracker without projects": (
        ["tracking.project=chat", "tracking.report_to=[tensorboard]"],
        ["tracking.project", "tracking.report_to"],
    ),
    "tasks of one name": (["eval.tasks=[{path: a/t.jsonl}, {path: b/t.jsonl}]"], ["'t'"]),
    "metric named twice": (["eval.tasks=[{path: t.jsonl, metrics: [contains, contains]}]"], ["contains"]),
    "subset of a file": (["data.train={path: a.jsonl, subset: en}"], ["subset"]),
    "split of a file": (["data.train=[{path: a.csv, split: test}]"], ["split"]),
    "revision of a file": (["data.eval={path: a.parquet, revision: main}"], ["revision"]),
    "revision of a folder": (["data.train={path: ./saved, revision: main}"], ["revision"]),
    "streaming of a file": (["data.train={path: a.jsonl, streaming: true}"], ["streaming", "a.jsonl"]),
    "bits without integers": (["quantization={bits: 3}"], ["quantization.bits", "method: int"]),
    "groups without integers": (["quantization={quant_type: nf4, group_size: 64}"], ["quantization.group_size"]),
    "double quantization of integers": (["quantization={method: int, double_quant: true}"], ["double_quant", "int"]),
    "a type of bitsandbytes in integers": (["quantization={method: int, quant_type: fp4}"], ["quant_type", "int"]),
    "experts in integers": (["quantization={method: int, experts: true}"], ["quantization.experts", "int"]),
    "PiSSA in integers": (["quantization={method: int}", "lora.init_lora_weights=pissa"], ["pissa", "int"]),
    "DoRA in integers": (["quantization={method: int}", "lora.use_dora=true"], ["use_dora", "int"]),
    "QA-LoRA on bitsandbytes": (["quantization={}", "lora.use_qalora=true"], ["use_qalora", "quantization.method"]),
    "QA-LoRA drawn by a Gaussian": (
        ["quantization={method: int}", "lora={use_qalora: true, init_lora_weights: gaussian}"],
        ["gaussian", "use_qalora"],
    ),
    "revision of a local base": (
        ["model.base_model=./base", "model.revision=main"],
        ["model.base_model", "model.revision"],
    ),
}
"""Overrides that contradict one another, and what the message must name."""


@pytest.fixture
def recipe_path(write_recipe):
    return write_recipe("model: {base_model: some/base}\ndata: {train: rows.jsonl}\n")


@pytest.mark.parametrize("case", CONFLICTS)
def test_a_conflict_is_refused_and_names_both_settings(recipe_path, case):
    overrides, named = CONFLICTS[case]
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_path, overrides)
    (problem,) = caught.value.problems
    assert problem.place.startswith("--set ")
    assert problem.hint
    for name in named:
        assert name in problem.text


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.max_steps=5"],
        ["training.save_strategy=steps", "training.save_steps=5"],
        ["data.eval=held.jsonl", "eval.eval_strategy=steps", "eval.eval_steps=5"],
        ["data.eval_fraction=0.1", "eval.eval_strategy=epoch"],
        ["data.eval={path: held.jsonl, weight: 1}"],
        ["data.train=[a.jsonl, b.jsonl]", "data.mix_by=rows"],
        [
            "data.train=[a.jsonl, {path: b.jsonl, weight: 3}]",
            "data.mix_by=tokens",
            "data.stopping_strategy=all_exhausted",
        ],
        ["data.clean={min_chars: 8, max_chars: 8}"],
        ["data.clean={min_chars: 8}"],
        ["data.truncation=cut_middle_turns"],
        ["data.train={path: a.jsonl, format: messages}", "data.truncation=cut_middle_turns"],
        ["data.train={path: a.jsonl, format: alpaca}", "data.truncation=cut_prompt"],
        ["data.train=[{path: a.jsonl, format: alpaca}, b.jsonl]", "data.truncation=cut_middle_turns"],
        ["data.train={path: a.jsonl, format: text}", "data.eval=b.jsonl", "data.truncation=cut_prompt"],
        ["data.train={path: a.jsonl, format: text}", "data.truncation=drop"],
        ["training.lr_scheduler_type=constant"],
        ["training.lr_scheduler_type=constant", "training.warmup_ratio=0"],
        ["training.lr_scheduler_type=constant_with_warmup", "training.warmup_ratio=0.1"],
        ["quantization={quant_type: int8, double_quant: false}"],
        ["quantization={quant_type: int8, experts: false}"],
        ["quantization={quant_type: fp4, experts: true}"],
        ["quantization={calibration: none}"],
        ["quantization={method: int, calibration: rows}"],
        ["quantization={}", "lora.init_lora_weights=loftq"],
        ["quantization={quant_type: int8}", "lora.init_lora_weights=pissa"],
        ["quantization={method: int, bits: 2}", "lora.init_lora_weights=loftq"],
        ["quantization={method: int}", "lora={init_lora_weights: calibrated, use_qalora: true}"],
        ["quantization={}", "lora.use_dora=true", "lora.use_rslora=true"],
        ["lora.autocast_adapter_dtype=false", "model.dtype=bfloat16"],
        ["lora.target_modules=[q_proj]", "lora.modules_to_save=[lm_head, embed_tokens]"],
        ["tracking.report_to=[tensorboard, wandb]", "tracking.project=chat"],
        ["eval.tasks=[{path: a/t.jsonl}, {path: b/t.jsonl, name: u}]"],
        ["data.train={path: tatsu-lab/alpaca, split: train, subset: x, revision: main}"],
        ["data.train={path: ./saved, split: train}"],
        ["data.train={path: org/rows, streaming: true}"],
        ["data.train={path: a.jsonl, streaming: false}"],
        ["model.revision=main"],
        ["model.revision=main", "model.trust_remote_code=true"],
        ["model.base_model=./base", "model.trust_remote_code=true"],
    ],
)
def test_settings_that_work_together_are_accepted(recipe_path, overrides):
    load_recipe(recipe_path, overrides)


def test_every_rule_has_a_conflict_in_the_table():
    silent = set(RULES)
    for overrides, _ in CONFLICTS.values():
        tree = Node({}, RecipePlace("", 0))
        for text in overrides:
            override, _ = parse_override(text)
            tree = merge(tree, override)
        silent -= {rule for rule in silent if list(rule(tree.plain()))}
    assert not silent
