"""A disk that fills up in mid-run: a real one of a few megabytes, which is made larger afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_cli.errors import ResourceError
from qlora_cli.run.checkpoints import newest_whole
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import Session, train_recipe
from tests.reliability.small_run import small_recipe

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
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_and_what_is_whole_goes_on_when_there_is_room(
    tiny_base, chat_data, tmp_path, small_disk
):
    recipe = small_recipe(tiny_base, chat_data, training={"max_steps": 12, "save_total_limit": 50})
    straight = RunDirectory(tmp_path / "straight")
    train_recipe(recipe, straight, Session())
    run = RunDirectory(small_disk / "run")
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        train_recipe(recipe, run, Session(force=True))
    assert caught.value.exit_code == 5
    assert "--resume" in caught.value.problems[0].hint
    whole, skipped = newest_whole(run.checkpoints_path)
    assert 0 < whole.step < 12
    assert skipped == []
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert train_recipe(recipe, run, Session(resume=True, force=True)).is_finished
    for name in ("adapter_model.safetensors", "optimizer.safetensors", "random.safetensors"):
        files = [directory.checkpoints_path / "step-000012" / name for directory in (straight, run)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_without_force_it_does_not_begin(tiny_base, chat_data, small_disk):
    run = RunDirectory(small_disk / "run")
    with pytest.raises(ResourceError, match=r"the run will write .* are free"):
        train_recipe(small_recipe(tiny_base, chat_data), run, Session())
    assert not run.is_started
