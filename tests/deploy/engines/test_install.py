"""Environments made by pip for real, from a wheel that lies in a folder: no network."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from qlora_cli.deploy.engines.install import command_lines, engine_version, make_environment
from qlora_cli.engine_environment import TRANSFORMERS, EngineEnvironment, OwnEnvironment
from qlora_cli.errors import ArgumentError, ResourceError

TOY = EngineEnvironment("toy", "toy_engine", ("toy-engine==1.2",), distribution="toy-engine", num_bytes=1)
PROJECT = Path(__file__).resolve().parents[3]

MAKE_SLOWLY = """
from qlora_cli.deploy.engines.install import make_environment
from tests.deploy.engines.test_install import TOY
print("begun", flush=True)
make_environment(TOY, force=False)
"""


def write_wheel(folder, code="ANSWER = 42\n"):
    """A package without dependencies, as pip takes it."""
    folder.mkdir(exist_ok=True)
    info = "toy_engine-1.2.dist-info"
    files = {
        "toy_engine.py": code,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.2\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "toy_engine-1.2-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


@pytest.fixture(autouse=True)
def only_local_wheels(tmp_path, monkeypatch):
    write_wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(TOY.variable, raising=False)


@pytest.mark.slow
def test_an_environment_is_made_imported_and_kept(tmp_path):
    assert TOY.python is None
    made = make_environment(TOY, force=False)
    assert made.version == "1.2"
    assert TOY.python == tmp_path / "cache" / "environments" / "toy" / "bin" / "python"
    inode = TOY.python.parent.stat().st_ino
    make_environment(TOY, force=False)
    assert TOY.python.parent.stat().st_ino == inode
    make_environment(TOY, force=True)
    assert TOY.python.parent.stat().st_ino != inode


@pytest.mark.slow
def test_the_printed_lines_make_what_the_command_makes(tmp_path):
    done = subprocess.run(["sh", "-ec", "\n".join(command_lines(TOY))], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1.2"


@pytest.mark.slow
def test_an_engine_that_cannot_be_imported_leaves_no_environment(tmp_path):
    write_wheel(tmp_path / "wheels", code="raise ImportError('libcudart.so.13 is missing')\n")
    with pytest.raises(ResourceError, match=r"libcudart\.so\.13 is missing"):
        make_environment(TOY, force=False)
    assert TOY.python is None
    write_wheel(tmp_path / "wheels")
    assert make_environment(TOY, force=False).version == "1.2"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.5])
def test_killed_at_any_moment_it_is_absent_or_complete_and_can_be_made(tmp_path, seconds):
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen([sys.executable, "-c", MAKE_SLOWLY], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout.readline() == "begun\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert TOY.python is None or engine_version(TOY) == "1.2"
    for _ in range(200):  # a pip that outlives its parent holds the lock
        try:
            assert make_environment(TOY, force=False).version == "1.2"
            return
        except ArgumentError as refusal:
            assert "is being made by another process" in str(refusal)  # noqa: PT017
            time.sleep(0.1)
    pytest.fail("the lock was never free")


def test_a_folder_of_somebody_else_is_refused_and_stays():
    TOY.folder.mkdir(parents=True)
    (TOY.folder / "mine.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="was not made by `qlora env`"):
        make_environment(TOY, force=True)
    assert (TOY.folder / "mine.txt").read_text() == "mine"


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(ResourceError, match=r"the disk is full: toy takes about 1000000\.0 TB, and"):
        make_environment(EngineEnvironment("toy", "toy_engine", ("toy-engine",), num_bytes=10**18), force=False)
    assert not TOY.folder.exists()


def test_a_variable_that_names_another_python_wins(monkeypatch):
    monkeypatch.setenv(TOY.variable, sys.executable)
    assert TOY.python == Path(sys.executable)
    with pytest.raises(ArgumentError, match="QLORA_TOY_PYTHON names a Python elsewhere"):
        make_environment(TOY, force=True)


def test_an_engine_of_this_python_has_the_version_that_is_installed_and_none_where_it_cannot_be_imported(
    tmp_path, monkeypatch
):
    assert engine_version(TRANSFORMERS) == importlib.metadata.version("transformers")
    (tmp_path / "toy_broken.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert engine_version(OwnEnvironment("toy", "toy_broken", ())) is None
    assert engine_version(OwnEnvironment("toy", "toy_absent", ())) is None
