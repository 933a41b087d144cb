"""Every command with every kind of secret around it: in what a library says, in arguments, in what a run holds."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_cli.secrets import known_values
from tests.reliability.harness.hostile import Place, change_json
from tests.reliability.harness.leaks import SECRETS, files_that_tell, told, written

pytestmark = [pytest.mark.torture, pytest.mark.filterwarnings("always")]

STEPS = {"training": {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}}
ON_A_RUN = {
    "resume": "train recipe.yaml --resume",
    "start over": "train recipe.yaml --overwrite",
    "runs": "runs",
    "runs as json": "runs --json",
    "eval": "eval runs/x --data sums.jsonl",
    "merge": "merge runs/x --force --dtype float32",
    "export": "export runs/x --out runs/exported",
    "generate": "generate runs/x --prompt hi --max-new-tokens 1",
    "generate as json": "generate runs/x --prompt hi --max-new-tokens 1 --json",
    "chat": "chat runs/x --max-new-tokens 1",
}
ON_A_RECIPE = {
    "train": "train recipe.yaml --run-dir runs/new",
    "train as json": "train recipe.yaml --run-dir runs/new --json",
    "data show": "data show recipe.yaml",
    "data page": "data show recipe.yaml --html runs/rows.html",
    "data check": "data check recipe.yaml",
    "data cache": "data cache",
    "plan": "plan recipe.yaml --timeline runs/plan.html",
    "validate": "validate recipe.yaml",
}
ALONE = {
    "recipes": "recipes",
    "recipes as json": "recipes smoke --json",
    "init": "init --base base --data sums.jsonl --out runs/new.yaml",
    "schema": "schema",
    "doctor": "doctor",
}
COMMANDS = ON_A_RUN | ON_A_RECIPE | ALONE
KNOWN_ENDS = (0, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def trained(furnished, tmp_path_factory) -> Path:
    """A finished run of two steps, merged and measured, beside the recipe that it was made of."""
    from qlora_cli.cli.app import main

    root = tmp_path_factory.mktemp("trained") / "root"
    shutil.copytree(furnished, root)
    Place(root, None).write_recipe(**STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CACHE", str(root / "here" / "cache"))
        patch.chdir(root / "here")
        for command in ("train recipe.yaml", "merge runs/x --dtype float32", "eval runs/x --data sums.jsonl"):
            patch.setattr(sys, "argv", ["qlora", *command.split()])
            with pytest.raises(SystemExit) as left:
                main()
            assert not left.value.code, command
    return root


@pytest.fixture
def run(place, trained, monkeypatch) -> Iterator[Path]:
    """The run in `place`; a question lies ready for a chat."""
    shutil.copytree(trained / "here" / "runs", place.here / "runs")
    place.write_recipe(**STEPS)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    yield place.run
    known_values.cache_clear()


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_library_that_tells_is_not_heard(place, run, monkeypatch, command, kind):
    from transformers import AutoConfig, AutoTokenizer

    text, secret = written(kind), SECRETS[kind][1]
    for part in (AutoConfig, AutoTokenizer):
        monkeypatch.setattr(part, "from_pretrained", _telling(part.from_pretrained, text))
    monkeypatch.setenv("SOME_API_KEY", text)
    known_values.cache_clear()
    for name in ("config", "tokenizer_config", "generation_config"):
        change_json(place.base / f"{name}.json", token=text)
    before = files_that_tell(place.root, secret)
    ended = place.qlora(*COMMANDS[command].split())
    assert ended.exit_code in KNOWN_ENDS, ended.said
    assert told(ended.said, secret) == [], ended.said
    assert files_that_tell(place.root, secret) == before


def _telling(load, text):
    def load_and_tell(*arguments, **options):
        for name in ("transformers", "huggingface_hub", "some.other.library"):
            logging.getLogger(name).error("401 for %s", text)
        warnings.warn(text, UserWarning, stacklevel=1)
        print(text, repr(text), json.dumps(text), file=sys.stderr)
        return load(*arguments, **options)

    return load_and_tell


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["", "--token=", "--max-new-tokens=", "--set=hub_token=", "--out="])
def test_an_argument_that_is_a_secret_is_not_shown(place, run, command, kind, option):
    if option == "--out=" and command in ("merge", "export", "init"):
        pytest.skip("the user names a folder")
    text, secret = written(kind), SECRETS[kind][1]
    ended = place.qlora(*COMMANDS[command].split(), option + text)
    assert told(ended.said, secret) == [], ended.said
    assert files_that_tell(place.root, secret) == {}


FILES = ["manifest.json", "metrics.jsonl", "recipe.yaml", "adapter/adapter_config.json", "merged/qlora_merge.json"]


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", ON_A_RUN)
def test_what_a_run_holds_of_somebody_elses_secrets_goes_no_further(place, run, command, name, kind):
    text, secret = written(kind), SECRETS[kind][1]
    if name.endswith(".yaml"):
        (run / name).write_text(json.dumps(place.recipe(tracking={"project": text})))
    elif name.endswith(".jsonl"):
        (run / name).write_text(json.dumps({"step": 1, "loss": text}) + "\n" + json.dumps({"step": text}) + "\n{}\n")
    else:
        change_json(
            run / name, **dict.fromkeys(("base", "base_model", "status", "base_model_name_or_path", "token"), text)
        )
    before = files_that_tell(place.root, secret)
    ended = place.qlora(*ON_A_RUN[command].split())
    assert ended.exit_code in KNOWN_ENDS, ended.said
    assert told(ended.said, secret) == [], ended.said
    after = files_that_tell(place.root, secret)
    assert after.keys() <= before.keys(), os.linesep.join(after)
