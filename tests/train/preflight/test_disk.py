"""What a run will write is held against what the disk has before the first step."""

from __future__ import annotations

import re

import pytest

from qlora_cli.errors import ResourceError
from qlora_cli.plan.disk import Disk
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.preflight.disk import SMALL_FILES_BYTES, check_disk_space
from qlora_cli.train.session import TrainOptions, train_recipe

TERABYTES = {
    "lora": {"r": 4096},
    "training": {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 100_000, "max_steps": 1_000_000},
}
"""A hundred thousand checkpoints of a hundred megabytes."""


def test_a_run_that_the_disk_cannot_hold_ends_before_its_first_step(small_recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(ResourceError, match=r"the run will write .* TB \(100001 checkpoints of ") as caught:
        train_recipe(small_recipe(**TERABYTES), run, TrainOptions())
    assert caught.value.exit_code == 5
    assert "--set training.save_total_limit=1" in caught.value.problems[0].hint
    assert not run.is_started


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.checkpoints_path.mkdir(parents=True)
    return run


@pytest.fixture
def free(monkeypatch):
    """A function that says how much the disk has."""

    def set_free(num_bytes: int) -> None:
        usage = (10**15, 10**15 - num_bytes, num_bytes)
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": usage[2]}))

    return set_free


DISK = Disk(adapter_bytes=10**8, checkpoint_bytes=3 * 10**8, num_checkpoints=3, merged_bytes=16 * 10**9)
NEEDED = 10**9 + SMALL_FILES_BYTES


def test_checkpoints_adapter_and_small_files_must_fit(run, free, capsys):
    free(NEEDED - 1)
    told = (
        r"write 1\.03 GB \(3 checkpoints of 300 MB, an adapter of 100 MB, 32\.0 MB of small files\); 1\.03 GB are free"
    )
    with pytest.raises(ResourceError, match=told):
        check_disk_space(DISK, run, force=False)
    check_disk_space(DISK, run, force=True)
    assert "warning: the run will write" in capsys.readouterr().err


def test_a_run_that_is_replaced_makes_room_for_the_new_one(run, free):
    free(NEEDED - 1000)
    run.earlier_path.mkdir()
    (run.earlier_path / "weights").write_bytes(bytes(999))
    with pytest.raises(ResourceError):
        check_disk_space(DISK, run, force=False)
    (run.earlier_path / "more").write_bytes(bytes(1))
    check_disk_space(DISK, run, force=False)


UNITS = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@pytest.mark.parametrize("num_freed", [0, 1_234, 345_678_901])
@pytest.mark.parametrize("num_free", [0, 56_789, 400_000_000])
def test_the_numbers_of_the_refusal_add_up(run, free, num_free, num_freed):
    disk = Disk(adapter_bytes=83_912_345, checkpoint_bytes=251_737_035, num_checkpoints=4, merged_bytes=0)
    free(num_free)
    with (run.checkpoints_path / "old").open("wb") as file:
        file.truncate(num_freed)
    with pytest.raises(ResourceError) as caught:
        check_disk_space(disk, run, force=False)
    text = caught.value.problems[0].text
    sizes = [float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) (bytes|[kMGT]B)", text)]
    written, checkpoint, adapter, small, is_free, *freed, missing = sizes
    assert len(freed) == bool(num_freed)
    assert written == pytest.approx(4 * checkpoint + adapter + small, rel=0.01)
    assert missing == pytest.approx(written - is_free - sum(freed), rel=0.02)


def test_a_merge_that_will_not_fit_is_only_said(run, free, capsys):
    free(NEEDED)
    check_disk_space(DISK, run, force=False)
    assert "the merged model takes 16.0 GB; `qlora merge --out`" in capsys.readouterr().err
    free(NEEDED + DISK.merged_bytes)
    check_disk_space(DISK, run, force=False)
    assert capsys.readouterr().err == ""


def test_checkpoints_that_are_there_make_room_for_newer_ones(run, free):
    with (run.checkpoints_path / "old").open("wb") as file:
        file.truncate(6 * 10**8)
    free(NEEDED - 6 * 10**8)
    check_disk_space(DISK, run, force=False)
