"""A command line that does not fit is a line and a hint, in every command and of every kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qlora_cli.cli.usage import without_debug
from qlora_cli.run.claim import mark
from qlora_cli.run.directory import RunDirectory
from tests.several import SEVERAL

SEE = "`qlora {} --help` shows what it takes"
WRONG = [
    ("trian", "there is no command 'trian'", "did you mean `qlora train` or `qlora tiny`?"),
    ("merge-lora", "there is no command 'merge-lora'", "did you mean `qlora merge`?"),
    ("evaluate", "there is no command 'evaluate'", "did you mean `qlora eval`?"),
    ("xyz", "there is no command 'xyz'", "`qlora --help` lists the commands"),
    ("my.yaml", "there is no command 'my.yaml'", "`qlora train my.yaml` trains what it describes"),
    ("data shw", "there is no command 'shw'", "did you mean `qlora data show`?"),
    ("--no", "`qlora` has no option --no", "`qlora --help` shows what it takes"),
    ("train --resme", "`qlora train` has no option --resme", "did you mean --resume?"),
    ("train r.yaml --fast", "`qlora train` has no option --fast", SEE.format("train")),
    ("plan --gpu", "option '--gpu' requires an argument", SEE.format("plan")),
    ("merge --onto x", "--onto: 'x' is not one of 'dequantized', 'original', 'auto'", SEE.format("merge")),
    ("train r.yaml --stop-after=-3", "--stop-after: input should be greater than or equal to 1, not '-3'",
     SEE.format("train")),
    ("data show r.yaml -n two", "-n: input should be a valid integer, not 'two'", SEE.format("data show")),
    ("train r.yaml lora.r=4", "`qlora train` does not know what to do with 'lora.r=4'",
     "override a key with `--set lora.r=4`"),
    ("runs a", "`qlora runs` does not know what to do with 'a'", SEE.format("runs")),
    ("generate", "`qlora generate` needs --prompt", "for example `qlora generate --prompt 'What is LoRA?'`"),
    ("tiny", "`qlora tiny` needs OUT", "for example `qlora tiny tiny-base`"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "problem", "hint"), WRONG, ids=[line for line, *_ in WRONG])
def test_a_wrong_command_line_is_a_line_and_a_hint_on_stderr_and_exit_code_2(call, line, problem, hint):
    ran = call(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: {problem}\nhint: {hint}\n"


def test_a_secret_on_a_wrong_command_line_is_not_shown(call):
    secret = "hf_" + "a1B2c3D4e5" * 4
    ran = call("runs", secret)
    assert ran.code == 2
    assert secret not in ran.err


RECIPE = "model: {base_model: b}\n"


@pytest.mark.parametrize("command", [("train",), ("validate",), ("data", "show"), ("data", "check")], ids=" ".join)
def test_without_a_recipe_it_is_said_which_ones_there_are_and_nothing_starts(call, tmp_path, command):
    path = " ".join(("qlora", *command))
    (tmp_path / "compose.yaml").write_text("services: {}\n")  # not every YAML file is a recipe
    none = call(*command)
    assert none.code == 2
    assert none.err.startswith(f"error: `{path}` needs a recipe, and no .yaml file in this folder is one\nhint: ")
    assert "`qlora init --data FILE`" in none.err
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    one = call(*command)
    assert one.err == f"error: `{path}` needs a recipe\nhint: there is one in this folder: `{path} recipe.yaml`\n"
    (tmp_path / "b.yml").write_text("extends: recipe.yaml\n")
    two = call(*command)
    assert two.err.endswith("hint: name one of those in this folder: b.yml, recipe.yaml\n")
    assert not (tmp_path / "runs").exists()


def test_debug_is_taken_out_but_not_where_it_is_a_value(call):
    assert call("data", "--debug", "cache", "--debug", "--json").code == 0
    option = type("Option", (), {"opts": ["--prompt"], "is_flag": False})
    flag = type("Option", (), {"opts": ["--json"], "is_flag": True})
    taken = without_debug(["--json", "--debug", "--prompt", "--debug", "--", "--debug"], [option, flag])
    assert taken == ["--json", "--prompt", "--debug", "--", "--debug"]


@pytest.mark.slow
def test_completion_knows_commands_and_options(start, monkeypatch):
    for words, number, expected in (("qlora tr", "1", "train"), ("qlora train --re", "2", "--resume")):
        monkeypatch.setenv("_QLORA_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", number)
        out, _ = start().communicate(timeout=60)
        assert out.split() == [expected]


WITHOUT_LIBRARIES = f"import sys; sys.modules['torch'] = None  # importing it raises\n{SEVERAL}"


def without_libraries(folder: Path, commands: Sequence[str]) -> dict[str, tuple[int | None, str]]:
    """How each command ended, and what it said; one that loads a library has no exit code."""
    asked = json.dumps([command.split() for command in commands])
    ran = subprocess.run([sys.executable, "-c", WITHOUT_LIBRARIES, asked], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    ended = [(code, said) for code, _, said in json.loads(ran.stdout)]
    return dict(zip(commands, ended, strict=True))


@pytest.mark.slow
def test_a_model_that_is_not_there_is_refused_before_any_library_is_loaded(tmp_path):
    commands = ["merge", "export --out out", "chat", "generate --prompt Hi", "eval"]
    for command, (code, said) in without_libraries(tmp_path, commands).items():
        assert (code, "there is no run in 'runs'" in said) == (2, True), (command, said)
    for command, (code, said) in without_libraries(tmp_path, [f"{each} nowhere" for each in commands]).items():
        assert (code, "'nowhere' is not a run directory" in said) == (2, True), (command, said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("smoke", "not downloaded, but made here\nhint: make it first: `qlora tiny runs/tiny-base "),
        ("smoke --set model.base_model=./runs/tiny-base/", "hint: make it first: `qlora tiny runs/tiny-base "),
        ("guanaco --set model.base_model=./nowhere", "'./nowhere' cannot be loaded: no such folder"),
        ("guanaco --set model.base_model=https://hf.co/Qwen/Qwen3-8B", "; on the Hub it is Qwen/Qwen3-8B\n"),
    ],
)
def test_a_base_whose_folder_is_not_there_is_refused_before_any_library_is_loaded(recipe, expected, tmp_path):
    commands = [f"{command} {recipe}" for command in ("train", "plan", "data show", "data check")]
    for command, (code, said) in without_libraries(tmp_path, commands).items():
        assert (code, expected in said) == (2, True), (command, said)


@pytest.mark.slow
def test_data_that_are_not_there_are_refused_before_any_library_is_loaded(tmp_path):
    (tmp_path / "chats.jsonl").touch()
    recipe = "guanaco --set model.base_model=meta-llama/Llama-3.1-8B --set"
    commands = [
        f"{command} {recipe} data.{key}=chat.jsonl"
        for command in ("train", "data show", "data check")
        for key in ("train", "eval")
    ]
    expected = "error: chat.jsonl: no such file or folder\nhint: did you mean 'chats.jsonl'?\n"
    for command, (code, said) in without_libraries(tmp_path, commands).items():
        assert (code, expected in said) == (2, True), (command, said)


@pytest.mark.slow
def test_a_run_that_is_there_is_refused_before_any_library_is_loaded(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "guanaco")
    run.path.mkdir(parents=True)
    mark(run)
    run.recipe_path.touch()
    ended = without_libraries(tmp_path, ["train guanaco", "train guanaco --resume", "train guanaco --overwrite"])
    (code, said), *others = ended.values()
    assert (code, "already holds an unfinished run" in said) == (2, True), said
    assert [(code, "import of torch halted" in said) for code, said in others] == [(None, True)] * 2
