"""Every hint is held against the product: keys that it names exist and take the value shown, commands parse."""

from __future__ import annotations

import ast
import difflib
import re
import shlex
from pathlib import Path

import click
import pytest
import typer
import yaml

import qlora_cli
from qlora_cli.cli.app import app
from qlora_cli.errors import RecipeError
from qlora_cli.recipe.foreign_keys import FOREIGN_KEYS, foreign_hint
from qlora_cli.recipe.json_schema import all_keys, field_at, keys_of, options_of
from qlora_cli.recipe.reader import load_recipe
from tests.sources import nodes_of, python_files

PACKAGE = Path(qlora_cli.__file__).parent
KEYS = set(all_keys())
MINIMAL = "model: {base_model: org/base}\ndata: {train: rows.jsonl}\n"
SAMPLES = {"integer": 16, "number": 0.5, "boolean": True, "string": "text", "array": ["q_proj"]}
TAKEN = {
    "data.train": "rows.jsonl",
    "data.eval": "held.jsonl",
    "data.train.columns": {"instruction": "ask"},
    "data.train.weight": 0.5,
    "eval.tasks": [{"path": "rows.jsonl"}],
    "eval.tasks.limit": 5,
    "tracking.report_to": ["wandb"],
    "training.learning_rate": 1e-4,
    "lora.loraplus_lr_ratio": 16,
    "quantization": {},
}
"""Keys with values of a kind that the schema does not tell."""

BESIDE = {
    "training.save_steps": {"training.save_strategy": "steps"},
    "eval.eval_steps": {"eval.eval_strategy": "steps", "data.eval": "held.jsonl"},
    "eval.eval_strategy": {"data.eval": "held.jsonl"},
    "tracking.project": {"tracking.report_to": ["wandb"]},
    "training.load_best_model_at_end": {"data.eval": "held.jsonl"},
    "training.early_stopping_patience": {"data.eval": "held.jsonl"},
    "lora.init_lora_weights": {"quantization": {}},
    "data.train.subset": {"data.train.path": "org/rows"},
    "model.trust_remote_code": {"model.revision": "abc"},
    "training.per_device_train_batch_size": {"training.gradient_accumulation_steps": 16},
    "data.mix_by": {"data.train": ["a.jsonl", "b.jsonl"]},
}
"""What a key needs beside it; the product's own messages say so."""

SENTENCES = {(tool, key): counterpart for tool, keys in FOREIGN_KEYS.items() for key, counterpart in keys.items()}


def quoted(counterpart):
    """The settings that a counterpart names: dotted key, and the value shown or None."""
    if " " not in counterpart:
        return [(counterpart, None)]
    found = re.findall(r"'([a-z0-9_.]+)(?:: ([^']+))?'", counterpart)
    return [(key, value or None) for key, value in found]


def sample(key):
    """A value that fits a key."""
    if key in TAKEN:
        return TAKEN[key]
    [option, *_] = options_of(field_at(tuple(key.split("."))))
    return option["enum"][0] if "enum" in option else option.get("const", SAMPLES.get(option.get("type"), {}))


def put(recipe, key, value):
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(recipe.get(section), dict):
            recipe[section] = {"path": "rows.jsonl"} if section in ("train", "tasks") else {}
        recipe = recipe[section]
    recipe[last] = value


def follow(tmp_path, key, value):
    """A recipe with this setting, and what it needs beside it, through the real reader."""
    recipe = yaml.safe_load(MINIMAL)
    for name, setting in {**BESIDE.get(key, {}), key: sample(key) if value is None else yaml.safe_load(value)}.items():
        put(recipe, name, setting)
    if recipe.get("eval", {}).get("eval_strategy") == "steps":
        recipe["eval"].setdefault("eval_steps", 5)
    if recipe.get("training", {}).get("save_strategy") == "steps":
        recipe["training"].setdefault("save_steps", 5)
    if isinstance(recipe.get("eval", {}).get("tasks"), dict):
        recipe["eval"]["tasks"] = [recipe["eval"]["tasks"]]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return load_recipe(path)


@pytest.mark.parametrize(("tool", "key"), SENTENCES, ids=lambda part: part.replace(" ", "-"))
def test_following_the_hint_for_a_foreign_key_leads_to_a_recipe_that_validates(tmp_path, tool, key):
    for ours, value in quoted(SENTENCES[tool, key]):
        if ours == "name" or ours in KEYS:
            follow(tmp_path, ours, value)
        else:
            pytest.fail(f"{tool}'s {key} leads to '{ours}', which is no key")


@pytest.mark.parametrize(("tool", "key"), SENTENCES, ids=lambda part: part.replace(" ", "-"))
def test_a_hint_says_what_to_type_or_that_there_is_nothing(tool, key):
    hint = foreign_hint(key)
    is_denied = "no counterpart" in hint or "every run" in hint or "comes with" in hint or "come with" in hint
    does_something = bool(quoted(SENTENCES[tool, key])) or "`" in hint or "environment variable" in hint
    assert is_denied or does_something or "is read from" in hint or "lies in" in hint or "is resumed" in hint, hint


THERE = {
    "train_on": r"no key.*(prompt|words|turn|completion)|(words|turn|completion).*no key",
    "torchrun": r"one process",
    "--overwrite": r"never overwritten",
    "QLORA_CACHE": r"prepared at the start of each run",
    "load_best_model_at_end": r"no counterpart.*(best|last ones)",
}
"""What is there -> how a hint would deny it."""


@pytest.mark.parametrize("key", [key for _, key in SENTENCES])
def test_no_hint_denies_what_is_there(key):
    hint = foreign_hint(key)
    assert not [there for there, denial in THERE.items() if re.search(denial, hint)], hint
    if "no counterpart" in hint or "no key" in hint:
        names = {full.rpartition(".")[2] for full in KEYS}
        assert not difflib.get_close_matches(key, names, n=1, cutoff=0.85), hint


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("early_stopping_patience", "'training.early_stopping_patience'"),
        ("metric_for_best_model", "'training.load_best_model_at_end: true'"),
        ("loraplus_lr_ratio", "'lora.loraplus_lr_ratio'"),
        ("save_only_model", "'training.save_total_limit: 1'"),
        ("neftune_noise_alpha", "'training.neftune_noise_alpha'"),
        ("load_best_model_at_end", "'training.load_best_model_at_end'"),
    ],
)
def test_keys_that_once_got_a_bare_list_of_keys_get_an_answer(tmp_path, key, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL + f"{key}: 1\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert said in caught.value.problems[0].hint


def texts():
    """Every text of the package that is no docstring, with its place; what is filled in stands as `X`."""
    for path in python_files("qlora_cli"):
        inside = {id(part) for node in nodes_of(path) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes_of(path):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node.value


TEXTS = list(texts())
COMMANDS = [(place, command) for place, text in TEXTS for command in re.findall(r"`(qlora [a-z][^`]*)`", text)]
OVERRIDES = [
    (place, setting)
    for place, text in TEXTS
    for setting in re.findall(r"--set ([a-z_.]+=(?:\[[^\]]*\]|[^\s,`'\")]*))", text)
]


SECTIONS = sorted({full.partition(".")[0] for full in KEYS if "." in full})
NO_KEYS = {"eval.arrow", "data.question"}
"""A file of the cache, and a column inside another."""

NAMED = {
    (place, key)
    for place, text in TEXTS
    for key in re.findall(rf"['`](?:--set )?((?:{'|'.join(SECTIONS)})\.[a-z_.]*[a-z_])(?=[:=]|['`])", text)
    if key not in NO_KEYS
}


@pytest.mark.parametrize(("place", "key"), sorted(NAMED), ids=str)
def test_every_key_that_a_text_quotes_exists(place, key):
    assert key in KEYS, place


def test_there_are_hints_to_hold_against_the_product():
    assert len(NAMED) > 100
    assert len(COMMANDS) > 20
    assert len(OVERRIDES) > 15


ROOT = typer.main.get_command(app)


def options_in(arguments):
    return [word.partition("=")[0] for word in arguments if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)]


@pytest.mark.parametrize(("place", "line"), COMMANDS, ids=lambda part: str(part)[:60])
def test_every_command_that_is_named_exists_with_its_options(place, line):
    command: click.Command = ROOT
    arguments = shlex.split(line.replace("...", "X"))[1:]
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        assert arguments, line
        assert arguments[0] in command.commands or arguments[0].startswith("-"), line
        if arguments[0].startswith("-"):
            break
        command = command.commands[arguments.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(options_in(arguments)) <= known | {"--help", "-h"}, line


@pytest.mark.parametrize(("place", "setting"), OVERRIDES, ids=lambda part: str(part)[:60])
def test_every_override_that_is_named_is_a_key_with_a_value_that_it_takes(tmp_path, place, setting):
    key, _, value = setting.partition("=")
    if key == "a.b":  # the pattern of `--set` itself
        return
    assert key in KEYS, f"{place}: {setting}"
    if "X" not in value and value not in ("", "..."):
        follow(tmp_path, key, value.rstrip(".;:"))


def test_every_setting_in_the_rules_hints_is_one_that_the_schema_takes():
    names = {full.rpartition(".")[2]: full for full in KEYS}
    for place, text in TEXTS:
        if not place.startswith("recipe/"):
            continue
        for name, value in re.findall(r"`([a-z_]+): ([^`{<]+)`", text):
            if name in names and "X" not in value and not keys_of(field_at(tuple(names[name].split("."))) or {}):
                options = options_of(field_at(tuple(names[name].split("."))) or {})
                words = {word for option in options for word in option.get("enum", ())}
                assert not words or str(value) in words or {o.get("type") for o in options} - {"string"}, (place, text)
