"""What pip installs works alone: from a built wheel, in an empty folder, without the repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.several import SEVERAL

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "qlora_cli", "configs", "recipes")
QUESTION = "The kettle does not start any more. There is no hurry at all."

pytestmark = pytest.mark.slow


def run(*command, cwd, **variables) -> subprocess.CompletedProcess[str]:
    """Run a command that knows nothing of the checkout."""
    unset = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"OMP_NUM_THREADS": "1"}
    texts = [str(word) for word in command]
    return subprocess.run(
        texts, cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built as pip builds it; from a copy, since a build leaves its folders in the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", folder)
    built = run(sys.executable, "-m", "pip", "wheel", *options, "./source", cwd=folder)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `qlora` command of a new virtual environment, with the libraries of the one that tests."""
    folder = tmp_path_factory.mktemp("venv")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder).returncode == 0
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "--disable-pip-version-check")
    done = run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    # A folder named in a .pth file is searched last, and .pth files in it, such as the checkout's own, are not read.
    site_packages = next(folder.glob("lib/python*/site-packages"))
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "qlora"


@pytest.fixture
def surroundings(tmp_path):
    """Options of `run` for an empty folder."""
    return {"cwd": tmp_path, "QLORA_CACHE": str(tmp_path / ".cache"), "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def qlora(installed, surroundings):
    """Run the installed command in an empty folder."""
    return lambda *words: run(installed, *words, **surroundings)


@pytest.fixture
def several(installed, surroundings):
    """Run commands in one process of the installed package: exit code, output and errors of each."""

    def call(*commands):
        ran = run(installed.parent / "python", "-c", SEVERAL, json.dumps(commands), **surroundings)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return call


def test_the_wheel_holds_every_file_of_the_package_and_nothing_beside_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    own = {name for name in names if not re.match(r"qlora_cli/shipped/|qlora_cli-[^/]*dist-info/", name)}
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "qlora_cli"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert own == set(listed.stdout.split())


def test_the_wheel_holds_every_recipe_and_part_and_their_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("qlora_cli/shipped/") for name in names if name.startswith("qlora_cli/shipped/")}
    patterns = ("recipes/*.yaml", "recipes/data/*.jsonl", "recipes/data/*.txt", "configs/*/*.yaml")
    assert shipped == {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}


def validate(name):
    """The command, with a base that needs no permission."""
    return "validate", name, "--set", "model.base_model=Qwen/Qwen3-8B"


def test_every_shipped_recipe_is_listed_printed_and_valid_without_the_repository(qlora, several, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"prompt": "Two and two?", "completion": "Four."}\n')
    names = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    listed = qlora("recipes", "--json")
    assert re.findall(r'"name": "([^"]*)"', listed.stdout) == names
    assert str(ROOT) not in listed.stdout
    assert qlora("recipes", names[0]).stdout == (ROOT / "recipes" / f"{names[0]}.yaml").read_text("utf-8")
    ended = several(*(words for name in names for words in (("recipes", name), validate(name))))
    for name, (_, printed, _), (code, _, said) in zip(names, ended[::2], ended[1::2], strict=True):
        assert printed == (ROOT / "recipes" / f"{name}.yaml").read_text("utf-8")
        assert code == 0, said
    assert qlora(*validate(names[0])).returncode == 0


def test_smoke_leads_to_an_answer_from_an_empty_folder(qlora, several, tmp_path):
    refused = qlora("train", "smoke")
    assert refused.returncode == 2
    [command] = re.findall(r"hint: make it first: `qlora (.*)`", refused.stderr)
    made, trained, answered = several(
        [*shlex.split(command), "--steps", "25"],
        ["train", "smoke", "--set", "training.max_steps=20"],
        ["generate", "--prompt", QUESTION, "--max-new-tokens", "12"],
    )
    for code, _, said in (made, trained, answered):
        assert code == 0, said
    _, answer, _ = answered
    assert answer.startswith("team: ")
    assert "recipes/data/tickets_train.jsonl" in (tmp_path / "runs" / "smoke" / "recipe.yaml").read_text("utf-8")


def test_a_target_folder_has_the_recipes_too(wheel, tmp_path):
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check")
    done = run(*pip, "--target", tmp_path / "packages", wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "empty").mkdir()
    command = (sys.executable, "-m", "qlora_cli", "validate", "guanaco")
    checked = run(*command, cwd=tmp_path / "empty", PYTHONPATH=str(tmp_path / "packages"))
    assert checked.returncode == 0, checked.stderr
    assert str(tmp_path / "packages" / "qlora_cli" / "shipped" / "recipes") in checked.stderr
