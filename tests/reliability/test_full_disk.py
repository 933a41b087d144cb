"""A disk that fills up in mid-run: a real one of a few megabytes, which is made larger afterwards."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qlora_cli.cli.app import main
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import ResourceError
from qlora_cli.recipe.reader import dump_recipe
from qlora_cli.run.checkpoints import newest_whole
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import TrainOptions, train_recipe
from tests.reliability.harness.small_run import small_recipe

KILOBYTES = 1400
"""Room for some checkpoints of 200 kB, and not for those of the whole run."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={KILOBYTES}k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a caught error may hold files open


def test_a_full_disk_ends_the_run_and_what_is_whole_goes_on_when_there_is_room(
    tiny_base, chat_data, tmp_path, small_disk
):
    training = {"max_steps": 12, "save_total_limit": 50}
    recipe = small_recipe(tiny_base, chat_data, lora={"target_modules": "all-linear"}, training=training)
    straight = RunDirectory(tmp_path / "straight")
    train_recipe(recipe, straight, TrainOptions())
    run = RunDirectory(small_disk / "run")
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        train_recipe(recipe, run, TrainOptions(force=True))
    assert caught.value.exit_code == 5
    assert "--resume" in caught.value.problems[0].hint
    whole, skipped = newest_whole(run.checkpoints_path)
    assert 0 < whole.step < 12
    assert skipped == []
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert train_recipe(recipe, run, TrainOptions(resume=True, force=True)).is_finished
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "random.safetensors"):
        files = [directory.checkpoints_path / "step-000012" / name for directory in (straight, run)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_without_force_it_does_not_begin(tiny_base, chat_data, small_disk):
    run = RunDirectory(small_disk / "run")
    with pytest.raises(ResourceError, match=r"the run will write .* are free"):
        train_recipe(small_recipe(tiny_base, chat_data), run, TrainOptions())
    assert not run.is_started


COMMANDS = {
    "init": ("init", "--out", "{disk}/mine.yaml"),
    "tiny": ("tiny", "{disk}/tiny", "--corpus", "{rows}", "--steps", "1", "--hidden", "64", "--layers", "1"),
    "train": ("train", "{recipe}", "--run-dir", "{disk}/new", "--force"),
    "eval": ("eval", "{disk}/run", "--data", "{rows}"),
    "merge": ("merge", "{run}", "--out", "{disk}/merged"),
    "merge into the run": ("merge", "{disk}/run"),
    "export": ("export", "{run}", "--out", "{disk}/exported"),
    "export of a merged run": ("export", "{merged}", "--out", "{disk}/exported"),
    "show": ("data", "show", "{recipe}", "--html", "{disk}/pages/rows.html"),
    "check": ("data", "check", "{recipe}"),
    "timeline": ("plan", "{recipe}", "--gpu", "t4", "--timeline", "{disk}/pages/step.html"),
}
"""What every command writes, all of it onto one disk; the cache is there too."""


@pytest.fixture(scope="module")
def furnished_runs(tiny_base, chat_data, tmp_path_factory):
    """A finished run, and one that is merged."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = small_recipe(tiny_base, chat_data, training={"max_steps": 2})
    train_recipe(recipe, RunDirectory(folder / "run"), TrainOptions())
    shutil.copytree(folder / "run", folder / "merged")
    merge_run(folder / "merged", None, MergeOptions())
    path = folder / "small.yaml"
    path.write_text(dump_recipe(recipe))
    return {"run": folder / "run", "merged": folder / "merged", "recipe": path, "rows": chat_data}


def fill(disk: Path) -> None:
    """Leave no block free."""
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but for locks, which are empty."""
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.mark.parametrize(
    ("refuse", "said"), [(fill, "the disk is full"), (make_read_only, "read-only")], ids=["full", "read-only"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_writes_says_so_in_one_line(
    furnished_runs, small_disk, monkeypatch, capsys, command, refuse, said
):
    shutil.copytree(furnished_runs["run"], small_disk / "run")
    monkeypatch.setenv("QLORA_CACHE", str(small_disk / "cache"))
    monkeypatch.chdir(small_disk)
    refuse(small_disk)
    before = tree(small_disk)
    arguments = [word.format(disk=small_disk, **furnished_runs) for word in COMMANDS[command]]
    monkeypatch.setattr(sys, "argv", ["qlora", *arguments])
    with pytest.raises(SystemExit) as exited:
        main()
    printed = capsys.readouterr().err
    monkeypatch.chdir("/")
    assert exited.value.code == 5, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, printed
    assert said in errors[0]
    assert str(small_disk) in errors[0]
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith("hint: ")
    assert tree(small_disk) == before


def test_a_disk_that_can_take_no_more_files_is_not_said_to_be_full(small_disk, monkeypatch, capsys):
    subprocess.run(["mount", "-o", "remount,nr_inodes=2", small_disk], check=True)
    (small_disk / "one").touch()
    monkeypatch.setattr(sys, "argv", ["qlora", "init", "--out", str(small_disk / "mine.yaml")])
    with pytest.raises(SystemExit, match="5"):
        main()
    assert "the disk holds as many files as it can" in capsys.readouterr().err


def test_clearing_a_read_only_cache_says_so(furnished_runs, small_disk, monkeypatch, capsys):
    monkeypatch.setenv("QLORA_CACHE", str(small_disk / "cache"))
    for arguments, code in ((["data", "check", str(furnished_runs["recipe"])], 0), (["data", "cache", "--clear"], 5)):
        monkeypatch.setattr(sys, "argv", ["qlora", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        assert exited.value.code == code, capsys.readouterr().err
        make_read_only(small_disk)
    assert "the file system is read-only" in capsys.readouterr().err
