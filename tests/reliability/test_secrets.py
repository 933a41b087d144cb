"""No secret is written or printed: every byte of every file and of the screen is searched, in several spellings."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from qlora_cli import console
from qlora_cli.secrets import known_values
from tests.reliability.harness.hostile import Ended, Place, change_json
from tests.reliability.harness.leaks import SECRETS, body, files_that_tell, told, written

HEX = body(40, "0123456789abcdef")
"""An older key of W&B: nothing but the variable's name says what it is."""

PASSWORD = 'correct "horse" bättery/' + body(16)
ENVIRONMENT = {
    "HF_TOKEN": written("hugging face"),
    "HUGGING_FACE_HUB_TOKEN": "hf_" + body(35),
    "WANDB_API_KEY": HEX,
    "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    "AWS_SECRET_ACCESS_KEY": body(40, "abcdefgABCDEFG0123456789+/"),
}


@pytest.fixture(autouse=True)
def _environment_is_read_anew() -> Iterator[None]:
    yield
    known_values.cache_clear()


@pytest.fixture
def environment(place, tmp_path, monkeypatch) -> list[str]:
    """The values of variables and login files that are secret."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    stored, netrc = "hf_" + body(36), body(41, "0123456789abcdef")
    (tmp_path / "token").write_text(stored + "\n")
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {netrc}\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    known_values.cache_clear()
    return [*ENVIRONMENT.values(), stored, netrc]


@pytest.fixture
def talkative_library(monkeypatch) -> None:
    """A library that logs, warns and prints each secret that it can find whenever a tokenizer is loaded."""
    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained

    def load_and_tell(*arguments, **options):
        for name in ENVIRONMENT:
            value = ENVIRONMENT[name]
            logging.getLogger("huggingface_hub").warning("%s is %s", name, value)
            logging.getLogger("some.other.library").error("%s is %s", name, value)
            print(name, repr(value), quote(value), base64.b64encode(value.encode()).decode(), file=sys.stderr)
        print("on stdout", ENVIRONMENT["HF_TOKEN"])
        warnings.warn(f"the token {ENVIRONMENT['HF_TOKEN']} is deprecated", UserWarning, stacklevel=1)
        try:
            raise ValueError(f"401 for {ENVIRONMENT['HF_TOKEN']}")
        except ValueError:
            logging.getLogger("transformers").exception(written("signature in a URL"))
        return load(*arguments, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load_and_tell)


def refused(place: Place, secret: str, *arguments: str) -> Ended:
    """Run a command that must end with exit code 2, and see that the secret is nowhere but where it was."""
    before = files_that_tell(place.root, secret)
    ended = place.qlora(*arguments)
    assert ended.exit_code == 2, ended.said
    assert told(ended.said, secret) == [], ended.said
    assert files_that_tell(place.root, secret) == before
    assert not place.run.exists()
    return ended


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_in_a_recipe_is_refused_with_its_key_and_line(place, kind):
    place.write_recipe(training={"max_steps": 1, "learning_rate": written(kind)})
    ended = refused(place, SECRETS[kind][1], "train", "recipe.yaml")
    assert "recipe.yaml:1: 'training.learning_rate' holds a secret: " in ended.said
    assert ended.said.count("error:") == 1


HF = SECRETS["hugging face"][1]
TOKEN = written("hugging face")
LONG = written("json web token")
RECIPES = {
    "unknown key": f"hub_token: {TOKEN}",
    "text": f"tracking: {{project: {TOKEN}}}",
    "part of a text": f"tracking: {{project: my-{TOKEN}-project}}",
    "item": f"lora: {{target_modules: [q_proj, {TOKEN}]}}",
    "path of the data": f"data: {{train: [{{path: 'https://user:{HF}@example.com/rows.jsonl'}}]}}",
    "key": f"training: {{{TOKEN}: 1}}",
    "key of an unknown section": f"hub: {{{TOKEN}: {{a: 1}}}}",
    "escaped": f'hub_token: "\\x68f_{HF}"',
    "folded": f'hub_token: "hf_\\\n    {HF}"',
    "block": f"notes: |\n  my token is\n  {TOKEN}",
    "anchor": f"a: &{TOKEN} 1",
    "alias that is unknown": f"a: *{TOKEN}",
    "alias of a secret": f"a: &a {TOKEN}\nb: *a",
    "merged": f"a: &a {{b: {TOKEN}}}\nlora: {{<<: *a}}",
    "tag": f"a: !{TOKEN} 1",
    "typed wrongly": f"lora: {{r: !!int {TOKEN}}}",
    "duplicate key": f"{TOKEN}: 1\n{TOKEN}: 2",
    "key without a value": f"{TOKEN}:",
    "syntax": f"lora: [{TOKEN}\nr: 1",
    "no colon": f"lora:\n  r: 1\n  {TOKEN}\n  a: 1",
    "nothing else": TOKEN,
    "a list": f"- {TOKEN}",
    "extends": f"extends: {TOKEN}.yaml",
    "list in extends": f"extends: [[{TOKEN}]]",
}
"""Where it stands -> the recipe's text."""


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES.keys())
def test_wherever_it_stands_in_a_recipe_it_is_not_shown(place, text):
    (place.here / "recipe.yaml").write_text(text)
    refused(place, HF, "train", "recipe.yaml")


def test_a_secret_in_a_part_that_the_recipe_extends_is_refused_even_where_it_is_written_over(place):
    (place.here / "part.yaml").write_text(f"\ntracking:\n  project: {LONG}\n")
    place.write_recipe(extends=["part.yaml"], tracking={"project": "sums"})
    ended = refused(place, LONG, "train", "recipe.yaml")
    assert "part.yaml:3: 'tracking.project' holds a secret: JSON Web Token" in ended.said


@pytest.mark.parametrize("override", ["tracking.project={}", "hub_token={}", "lora.r={}", "{}=1", "lora.{}.r=2", "{}="])
def test_a_secret_in_an_override_is_refused(place, override):
    place.write_recipe()
    ended = refused(place, LONG, "train", "recipe.yaml", "--set", override.format(LONG))
    assert "a secret: JSON Web Token" in ended.said


@pytest.mark.parametrize("override", ["{}", "lora.r=[{}", "lora.r=*{}", "extends={}"])
def test_a_secret_in_an_override_that_cannot_be_read_is_not_shown(place, override):
    place.write_recipe()
    refused(place, LONG, "train", "recipe.yaml", "--set", override.format(LONG))


def test_a_secret_in_the_name_of_a_recipe_does_not_name_the_run(place):
    (place.here / f"{TOKEN}.yaml").write_text(
        json.dumps({**place.recipe(), "name": None}).replace('"name": null, ', "")
    )
    assert "the file name holds a secret" in refused(place, HF, "train", f"{TOKEN}.yaml").said


def test_the_errors_of_validate_as_json_hold_no_secret(place):
    place.write_recipe(hub_token=LONG)
    ended = refused(place, LONG, "validate", "recipe.yaml", "--json")
    assert json.loads(ended.said)["problems"][0]["text"] == "'hub_token' holds a secret: JSON Web Token"


@pytest.mark.parametrize(
    "arguments", [("train", "recipe.yaml", LONG), (LONG,), ("data", LONG), ("recipes", LONG), ("init", "--base", LONG)]
)
def test_an_argument_that_does_not_fit_is_not_shown_where_it_is_a_secret(place, arguments):
    place.write_recipe()
    refused(place, LONG, *arguments)


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_the_value_of_a_variable_that_is_secret_is_refused_in_a_recipe(place, environment, name):
    place.write_recipe(tracking={"project": ENVIRONMENT[name]})
    ended = refused(place, ENVIRONMENT[name], "train", "recipe.yaml")
    assert f"'tracking.project' holds a secret: value of {name}" in ended.said


@pytest.mark.filterwarnings("always")
def test_a_training_among_secrets_tells_none_of_them(place, environment, talkative_library):
    place.write_recipe(
        quantization={}, tracking={"report_to": ["tensorboard"]}, training={"save_strategy": "steps", "save_steps": 1}
    )
    ended = place.qlora("train", "recipe.yaml")
    assert ended.exit_code == 0, ended.said
    secrets = [*environment, SECRETS["signature in a URL"][1]]
    assert told(ended.said, *secrets) == []
    assert files_that_tell(place.root, *secrets) == {}
    log = (place.run / "log.txt").read_text()
    assert "HF_TOKEN is (secret value of HF_TOKEN)" in log
    assert "ValueError: 401 for (secret value of HF_TOKEN)" in log
    assert "the token (secret value of HF_TOKEN) is deprecated" in log
    assert "HF_TOKEN '(secret value of HF_TOKEN)'" in ended.said
    assert list((place.run / "tensorboard").iterdir())


def test_without_the_redaction_the_log_and_the_screen_would_tell(place, environment, talkative_library, monkeypatch):
    monkeypatch.setattr(console, "redacted", str)
    place.write_recipe()
    ended = place.qlora("train", "recipe.yaml")
    assert set(told(ended.said, *environment)) >= {TOKEN, HEX}
    assert set(files_that_tell(place.root, *environment)) == {"here/runs/x/log.txt"}


def test_what_somebody_left_in_the_settings_of_a_base_goes_nowhere(place):
    left = {"token": TOKEN, "nested": {"auth": [TOKEN]}}
    for name in ("config", "tokenizer_config", "generation_config"):
        change_json(place.base / f"{name}.json", **left)
    before = files_that_tell(place.root, HF)
    assert len(before) == 3
    place.write_recipe(tracking={"report_to": ["tensorboard"]}, lora={"r": 2, "init_lora_weights": "pissa"})
    for command in ("train recipe.yaml", "eval runs/x --data sums.jsonl", "merge runs/x", "export runs/x --out runs/y"):
        ended = place.qlora(*command.split())
        assert ended.exit_code == 0, ended.said
        assert told(ended.said, HF) == []
    assert files_that_tell(place.root, HF) == before
    assert place.qlora("train", "recipe.yaml", "--resume").exit_code == 0


def test_a_row_that_is_taken_out_is_kept_and_the_reason_does_not_quote_its_secret(place):
    rows = [{"instruction": "say it", "output": TOKEN}] * 4 + [{"instruction": 1, LONG: LONG, "output": [LONG]}]
    with (place.here / "sums.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows) + f'{{"instruction": "a", "output": "b"}} {LONG}\n')
    place.write_recipe(data={"train": "sums.jsonl", "max_length": 256})
    ended = place.qlora("data", "check", "recipe.yaml")
    assert "text after the object: '(secret JSON Web Token)'" in ended.said
    assert told(ended.said, LONG) == []
    assert told(place.qlora("data", "check", "recipe.yaml", "--json").said, LONG) == []


def test_rows_and_answers_stay_as_they_are(place):
    rows = "".join(json.dumps({"instruction": f"say it {n}", "output": TOKEN}) + "\n" for n in range(6))
    (place.here / "sums.jsonl").write_text(rows + json.dumps({"instruction": TOKEN, "output": "a"}) + "\n")
    task = {"path": "sums.jsonl", "max_new_tokens": 1, "limit": 1}
    data = {"max_length": 256, "clean": {"min_chars": 2}}
    place.write_recipe(data=data, eval={"tasks": [task]})
    assert f"⟦{TOKEN}<|im_end|>" in place.qlora("data", "show", "recipe.yaml").said
    assert place.qlora("data", "show", "recipe.yaml", "--row", "7", "--html", "runs/rows.html").exit_code == 0
    assert TOKEN in (place.here / "runs" / "rows.html").read_text()
    assert place.qlora("train", "recipe.yaml").exit_code == 0
    assert json.loads((place.run / "data" / "rejected.jsonl").read_text())["row"]["instruction"] == TOKEN
    assert place.qlora("eval", "runs/x").exit_code == 0
    assert json.loads((place.run / "eval" / "answers-sums.jsonl").read_text())["reference"] == TOKEN


@pytest.mark.parametrize("option", ["--debug", "--"], ids=["debug", "plain"])
def test_the_traceback_of_a_bug_tells_no_secret(tmp_path, option):
    script = f"""
import os, sys
from qlora_cli.cli import app
import qlora_cli.recipe.reader as reader
def broken(path, overrides):
    try:
        raise KeyError({LONG!r})
    except KeyError as fault:
        raise RuntimeError("cannot reach it with " + os.environ["WANDB_API_KEY"]) from fault
reader.check_recipe = broken
sys.argv = ["qlora", *{[option] if option == "--debug" else []!r}, "validate", "recipe.yaml"]
app.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={"WANDB_API_KEY": HEX, "PYTHONPATH": str(Path(console.__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "RuntimeError: cannot reach it with (secret value of WANDB_API_KEY)" in ended.stderr
    assert "KeyError: '(secret JSON Web Token)'" in ended.stderr
    assert HEX not in ended.stderr


@pytest.mark.parametrize("kind", SECRETS)
def test_the_search_finds_a_secret_in_each_spelling(tmp_path, kind):
    secret = SECRETS[kind][1]
    for encode in (str, json.dumps, repr, quote, lambda text: base64.b64encode(f"a:{text}".encode()).decode()):
        (tmp_path / "file").write_text("x" * 1000 + encode(secret))
        assert files_that_tell(tmp_path, secret) == {"file": [secret]}
    assert told(secret[-20:], secret) or kind == "private key"
    assert told("x" * 1000, secret) == []
