"""The functions for notebooks and programs do what the commands do."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import typer

import qlora_cli
from qlora_cli import api, chat, evaluate, export, generate, merge, train
from qlora_cli.cli.app import app
from qlora_cli.errors import ArgumentError, RecipeError
from qlora_cli.run.checkpoints import list_checkpoints
from qlora_cli.run.files import sha256_file
from qlora_cli.run.metrics import read_metrics
from tests.reliability.harness.forkserver import ForkServer

pytestmark = pytest.mark.slow

HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "bitsandbytes", "typer", "pydantic", "yaml")

TIMES = ("tokens_per_second", "peak_memory_bytes")


@pytest.fixture
def recipe(tiny_base, chat_data, tmp_path, monkeypatch):
    """Four steps on the tiny base, as a mapping; runs are written below the test's folder."""
    monkeypatch.chdir(tmp_path)
    return {
        "name": "sums",
        "model": {"base_model": tiny_base},  # a Path, as programs have them
        "lora": {"r": 4, "lora_dropout": 0.1},
        "data": {"train": chat_data, "max_length": 64, "eval_fraction": 0.1},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.01,
        },
    }


def written(run: Path) -> dict[str, str]:
    """Every file of a run that must be the same in the same run, and its metrics less what time tells."""
    files = {
        str(path.relative_to(run)): sha256_file(path)
        for folder in (run / "adapter", run / "checkpoints")
        for path in folder.rglob("*")
        if path.suffix == ".safetensors" or path.name.startswith(("random", "scheduler", "optimizer"))
    }
    lines = [{key: line[key] for key in line if key not in TIMES} for line in read_metrics(run / "metrics.jsonl")]
    return files | {"metrics": json.dumps(lines)}


def test_importing_the_functions_loads_nothing_heavy():
    code = f"import sys; from qlora_cli import {', '.join(qlora_cli.__all__)}; print([*sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [library for library in HEAVY if f"'{library}'" in ran.stdout] == []


def test_functions_keep_their_names_when_the_packages_of_these_names_are_imported():
    code = (
        "import qlora_cli.train.processes.launch, qlora_cli.evaluate.metrics\n"
        "from qlora_cli import train, evaluate\n"
        "from qlora_cli.train.processes import launch\n"
        "print(train.__module__, evaluate.__module__, launch.__name__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "qlora_cli.api qlora_cli.api_reports qlora_cli.train.processes.launch\n"


@pytest.mark.parametrize(
    ("command", "function", "own"),
    [
        ("train", train, set()),
        ("eval", evaluate, set()),
        ("merge", merge, set()),
        ("export", export, set()),
        ("generate", generate, {"on_text"}),
        ("chat", chat, set()),
    ],
)
def test_a_function_has_the_options_and_defaults_of_its_command(command, function, own):
    plural = {"task": "tasks", "metric": "metrics"}
    shown_only = {"as_json", "stream", "url", "model", "no_history"}  # what a program has other ways for
    options = {
        plural.get(option.name, option.name): option.default
        for option in typer.main.get_command(app).commands[command].params
        if option.name not in shown_only
    }
    parameters = inspect.signature(function).parameters
    parts_of_one = {"judge_model"}  # `judge` takes both
    assert parameters.keys() - own == options.keys() - {"help"} - parts_of_one
    for name, default in options.items():
        if name in parameters and parameters[name].default not in ((), None, inspect.Parameter.empty):
            assert parameters[name].default == default, name


def test_the_whole_road_from_a_mapping(recipe, tmp_path):
    trained = train(recipe)
    assert trained.is_finished
    assert trained.run.path == Path("runs/sums")
    loss = evaluate(trained.run).results.measures[0]
    assert (loss.measure, loss.values["tuned"].value < loss.values["base"].value) == ("loss", True)
    merged = merge(trained.run)
    assert merged.path == Path("runs/sums/merged")
    exported = export("runs/sums", out=tmp_path / "model")
    assert (exported.path / "config.json").is_file()
    pieces: list[str] = []
    answer = generate("add 1 and 2", trained.run, max_new_tokens=5, on_text=pieces.append)
    assert "".join(pieces) == answer.text
    assert generate("add 1 and 2", merged.path, max_new_tokens=5).num_prompt_tokens == answer.num_prompt_tokens
    session = chat(max_new_tokens=5, temperature=0)
    assert session.ask("add 1 and 2").text == answer.text
    assert session.ask("and then?").num_prompt_tokens > answer.num_prompt_tokens


def test_a_mapping_and_its_file_are_the_same_recipe(recipe, tmp_path):
    train(recipe, overrides={"training.max_steps": 2, "training.learning_rate": 1e-3}, run_dir="runs/mapping")
    Path("sums.json").write_text(json.dumps(recipe, default=str))
    train("sums.json", overrides=["training.max_steps=2", "training.learning_rate=1e-3"], run_dir="runs/file")
    texts = [Path(f"runs/{name}/recipe.yaml").read_text() for name in ("mapping", "file")]
    assert texts[0] == texts[1]
    assert written(Path("runs/mapping")) == written(Path("runs/file"))


SECOND = {"model.dtype": "float32", "lora.lora_dropout": 0.0, "quantization": {}, "training.seed": 7}
FIRSTS = {
    "the same": SECOND,
    "another precision": SECOND | {"model.dtype": "bfloat16"},
    "another optimizer and base": SECOND | {"training.optim": "adamw_8bit", "quantization.quant_type": "fp4"},
    "one that fails": SECOND | {"model.base_model": "not/there"},
    "one that stops": SECOND | {"training.max_steps": 8},
}


def train_alone(values, folder: str, num_threads: int) -> int:
    """In a child of a fork server, where nothing has been trained."""
    os.chdir(folder)
    torch.set_num_threads(num_threads)
    train(values, overrides=SECOND, run_dir="second")
    return 0


@pytest.fixture(scope="module")
def alone(tiny_base, chat_data, tmp_path_factory):
    """What the second run is when nothing went before, in a process of its own."""
    folder = tmp_path_factory.mktemp("alone")
    values = {
        "name": "sums",
        "model": {"base_model": str(tiny_base)},
        "lora": {"r": 4, "lora_dropout": 0.1},
        "data": {"train": str(chat_data), "max_length": 64, "eval_fraction": 0.1},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.01,
        },
    }
    asked = {"values": values, "folder": str(folder), "num_threads": torch.get_num_threads()}
    log = folder / "log"
    with ForkServer() as server:
        assert server.run(f"{__name__}:{train_alone.__name__}", asked, log=log) == 0, log.read_text()
    return written(folder / "second")


@pytest.mark.every(2)
@pytest.mark.parametrize("first", FIRSTS.values(), ids=FIRSTS)
def test_a_run_is_the_same_to_the_bit_whatever_ran_before_in_the_process(recipe, alone, first):
    with suppress(RecipeError):  # one of them has no base
        train(recipe, overrides=first, run_dir="first", stop_after=3)
    train(recipe, overrides=SECOND, run_dir="second")
    assert written(Path("second")) == alone


def test_a_stop_saves_a_checkpoint_and_the_run_goes_on_to_the_same_end(recipe):
    """What a notebook's stop button does, which sends SIGINT."""
    train(recipe, run_dir="straight", overrides={"training.max_steps": 12})
    watcher = threading.Thread(target=interrupt_once_there, args=(Path("stopped/metrics.jsonl"),))
    watcher.start()
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped at step \d+ of 12; the checkpoint is saved\nhint: continue with"
    ):
        train(recipe, run_dir="stopped", overrides={"training.max_steps": 12})
    watcher.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    [checkpoint] = list_checkpoints(Path("stopped/checkpoints"))
    assert 0 < checkpoint.step < 12
    result = train(recipe, run_dir="stopped", overrides={"training.max_steps": 12}, resume=True)
    assert (result.num_steps, result.num_steps_now) == (12, 12 - checkpoint.step)
    same = "adapter/adapter_model.safetensors"
    assert written(Path("stopped"))[same] == written(Path("straight"))[same]


def interrupt_once_there(path: Path) -> None:
    for _ in range(6000):
        if path.is_file() and path.stat().st_size:
            os.kill(os.getpid(), signal.SIGINT)
            return
        threading.Event().wait(0.01)


def test_it_trains_in_a_thread_as_well(recipe):
    train(recipe, run_dir="main")
    thread = threading.Thread(target=train, args=(recipe,), kwargs={"run_dir": "thread"})
    thread.start()
    thread.join()
    assert written(Path("thread")) == written(Path("main"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lora": {"lora_alhpa": 3}}, "recipe: unknown key 'lora.lora_alhpa'"),
        ({"data": {"train": open}}, "recipe: 'data.train' is of the type builtin_function_or_method"),
        ({3: 4}, "recipe: 3 is not a key"),
        ({"training": {"learning_rate": "fast"}}, "recipe: training.learning_rate"),
        ({"extends": "nowhere.yaml"}, "recipe: 'nowhere.yaml' in 'extends' does not exist"),
        ({"model": None}, "recipe: model must be a section"),
    ],
    ids=str,
)
def test_a_mapping_that_is_no_recipe_is_refused_as_a_file_would_be(recipe, change, text):
    with pytest.raises(RecipeError) as caught:
        train({**recipe, **change})
    assert text in str(caught.value)
    assert "hint: " in str(caught.value)


def test_a_key_that_is_missing_in_a_mapping_has_no_line():
    with pytest.raises(RecipeError, match=r"error: recipe: missing key 'data'\nhint: "):
        train({"model": {"base_model": "base"}})


def test_a_mapping_that_holds_itself_is_refused(recipe):
    recipe["lora"] = recipe
    with pytest.raises(RecipeError, match="nested more than"):
        train(recipe)


@pytest.mark.parametrize(
    "call",
    [
        lambda: train("recipe.yaml", stop_after=0),
        lambda: train("recipe.yaml", resume=True, overwrite=True),
        lambda: train("recipe.yaml", overrides={"lora.r": object()}),
        lambda: evaluate("run", limit=0),
        lambda: evaluate("run", tasks="file", metrics="accuracy"),
        lambda: evaluate("run"),
        lambda: merge("run", dtype="float16"),
        lambda: merge("run", onto="base"),
        lambda: export("run", out="out", format="gguf"),
        lambda: generate("hello", "run"),
        lambda: generate("hello", "run", top_p=1.5),
        lambda: generate("hello", "run", temperature=-1),
        lambda: chat("run", max_new_tokens=0),
    ],
)
def test_an_argument_that_does_not_fit_is_an_error_with_a_hint(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError) as caught:
        call()
    assert all(problem.hint for problem in caught.value.problems)


def test_a_recipe_as_a_mapping_holds_no_secret(recipe):
    token = "hf_" + "AbCdEfGhIj" * 3 + "KlMn"
    with pytest.raises(RecipeError) as caught:
        train({**recipe, "name": token})
    assert token not in str(caught.value)


def test_every_function_is_documented():
    for name in qlora_cli.__all__:
        function = getattr(api, name, None)
        if function is not None:
            lines = re.findall(r"^    (\w+(?:, \w+)*): ", inspect.getdoc(function), flags=re.MULTILINE)
            described = {each for line in lines for each in line.split(", ")}
            assert [each for each in inspect.signature(function).parameters if each not in described] == [], name
