"""Checkpoints are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_cli.run.checkpoints import SEAL_NAME, list_checkpoints, newest_whole, rotate_checkpoints, staged_checkpoint


def save(folder: Path, step: int, content: bytes = b"weights") -> Path:
    with staged_checkpoint(folder, step, {"data_fingerprint": "abc"}) as stage:
        (stage / "adapter.bin").write_bytes(content)
        (stage / "state.json").write_text("{}")
    return folder / f"step-{step:06d}"


def test_a_checkpoint_seals_every_file_with_its_hash(tmp_path):
    path = save(tmp_path, 5)
    seal = json.loads((path / SEAL_NAME).read_text())
    assert seal["step"] == 5
    assert seal["data_fingerprint"] == "abc"
    # printf weights | sha256sum
    assert seal["sha256"]["adapter.bin"] == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert set(seal["sha256"]) == {"adapter.bin", "state.json"}


def test_nothing_becomes_visible_when_writing_fails(tmp_path):
    with pytest.raises(OSError, match="disk"), staged_checkpoint(tmp_path, 5, {}) as stage:
        (stage / "adapter.bin").write_bytes(b"half")
        raise OSError("disk")
    assert list(tmp_path.iterdir()) == []


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "adapter.bin").read_bytes())
    content[0] ^= 16
    (path / "adapter.bin").write_bytes(content)


DAMAGES = {
    "flipped bit": flip_a_bit,
    "truncated file": lambda path: (path / "adapter.bin").write_bytes(b"wei"),
    "missing file": lambda path: (path / "state.json").unlink(),
    "extra file": lambda path: (path / "intruder").write_text("x"),
    "missing seal": lambda path: (path / SEAL_NAME).unlink(),
    "unreadable seal": lambda path: (path / SEAL_NAME).write_text("{"),
    "seal of another step": lambda path: (path / SEAL_NAME).write_text(
        (path / SEAL_NAME).read_text().replace('"step": 10', '"step": 9')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over_for_the_older_whole_one(tmp_path, damage):
    save(tmp_path, 5)
    damage(save(tmp_path, 10))
    checkpoint, skipped = newest_whole(tmp_path)
    assert checkpoint.step == 5
    assert [(item.step, bool(reason)) for item, reason in skipped] == [(10, True)]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 5, b"old")
    path = save(tmp_path, 5, b"new")
    assert (path / "adapter.bin").read_bytes() == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["step-000005"]


def test_rotation_goes_by_step_number_and_removes_leftovers(tmp_path):
    for step in (5, 100, 20):
        save(tmp_path, step)
    (tmp_path / ".step-000120.staging-1").mkdir()
    rotate_checkpoints(tmp_path, keep=2)
    assert [item.step for item in list_checkpoints(tmp_path)] == [20, 100]
    assert len(list(tmp_path.iterdir())) == 2
