"""Checkpoints are whole or not there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from qlora_cli.errors import ResourceError
from qlora_cli.run.checkpoints import SEAL_NAME, list_checkpoints, newest_whole, rotate_checkpoints, staged_checkpoint
from tests.run.leftovers import half_written_folder


def save(folder: Path, step: int, content: bytes = b"weights", fingerprint: str = "abc") -> Path:
    with staged_checkpoint(folder, step, {"data_fingerprint": fingerprint}) as stage:
        (stage / "adapter_model.safetensors").write_bytes(content)
        (stage / "state.json").write_text("{}")
    return folder / f"step-{step:06d}"


def test_a_checkpoint_seals_every_file_with_its_hash(tmp_path):
    path = save(tmp_path, 5)
    seal = json.loads((path / SEAL_NAME).read_text())
    assert seal["step"] == 5
    assert seal["data_fingerprint"] == "abc"
    # printf weights | sha256sum
    assert (
        seal["sha256"]["adapter_model.safetensors"]
        == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    )
    assert set(seal["sha256"]) == {"adapter_model.safetensors", "state.json"}


def test_nothing_becomes_visible_when_writing_fails(tmp_path):
    with pytest.raises(ResourceError, match="the disk is full") as caught, staged_checkpoint(tmp_path, 5, {}) as stage:
        (stage / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "adapter_model.safetensors").read_bytes())
    content[0] ^= 16
    (path / "adapter_model.safetensors").write_bytes(content)


DAMAGES = {
    "flipped bit": flip_a_bit,
    "truncated file": lambda path: (path / "adapter_model.safetensors").write_bytes(b"wei"),
    "missing file": lambda path: (path / "state.json").unlink(),
    "extra file": lambda path: (path / "intruder").write_text("x"),
    "missing seal": lambda path: (path / SEAL_NAME).unlink(),
    "unreadable seal": lambda path: (path / SEAL_NAME).write_text("{"),
    "seal of another step": lambda path: (path / SEAL_NAME).write_text(
        (path / SEAL_NAME).read_text().replace('"step": 10', '"step": 9')
    ),
    "seal of another run": lambda path: save(path.parent, 10, fingerprint="xyz"),
    "edited seal": lambda path: (path / SEAL_NAME).write_text((path / SEAL_NAME).read_text().replace('"torch"', '"t"')),
    "seal nested beyond sense": lambda path: (path / SEAL_NAME).write_text("[" * 200_000),
    "seal too large": lambda path: os.truncate(path / SEAL_NAME, 1 << 34),
    "link in place of a file": lambda path: link_out(path / "state.json"),
    "link in place of the folder": lambda path: link_out(path),
    "file in a folder of its own": lambda path: hide_a_file(path / "sub"),
}


def link_out(path: Path) -> None:
    outside = path.parent.parent / f"{path.name}-outside"
    path.rename(outside)
    path.symlink_to(outside)


def hide_a_file(folder: Path) -> None:
    folder.mkdir()
    (folder / SEAL_NAME).write_text("{}")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over_for_the_older_whole_one(tmp_path, damage):
    folder = tmp_path / "checkpoints"
    save(folder, 5)
    damage(save(folder, 10))
    checkpoint, skipped = newest_whole(folder, {"data_fingerprint": "abc"})
    assert checkpoint.step == 5
    is_seen = not (folder / "step-000010").is_symlink()
    assert [(item.step, bool(reason)) for item, reason in skipped] == [(10, True)] * is_seen


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 5, b"old")
    path = save(tmp_path, 5, b"new")
    assert (path / "adapter_model.safetensors").read_bytes() == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["step-000005"]


def test_rotation_goes_by_step_number_and_removes_leftovers(tmp_path):
    for step in (5, 999_999, 1_000_000):
        save(tmp_path, step)
    half_written_folder(tmp_path / "step-000120")
    half_written_folder(tmp_path / "step-000120", "retired")
    rotate_checkpoints(tmp_path, keep=2)
    assert [item.step for item in list_checkpoints(tmp_path)] == [999_999, 1_000_000]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_others_put_into_a_checkpoint_outlives_it(tmp_path):
    notes = save(tmp_path, 5) / "notes.txt"
    notes.write_text("good at sums")
    save(tmp_path, 10)
    rotate_checkpoints(tmp_path, keep=1)
    assert notes.read_text() == "good at sums"
    assert [path.name for path in notes.parent.iterdir()] == ["notes.txt"]
    assert [item.step for item in list_checkpoints(tmp_path)] == [10]


def test_what_others_put_into_a_checkpoint_stays_when_its_step_is_saved_again(tmp_path):
    notes = save(tmp_path, 5) / "notes.txt"
    notes.write_text("good at sums")
    assert newest_whole(tmp_path)[0] is None  # an added file could be anything
    save(tmp_path, 5)
    found, skipped = newest_whole(tmp_path)
    assert (found.step, skipped, notes.read_text()) == (5, [], "good at sums")


def test_a_checkpoint_that_was_passed_over_does_not_outlive_those_saved_after_it(tmp_path):
    save(tmp_path, 5)
    flip_a_bit(save(tmp_path, 10))
    save(tmp_path, 7)  # the run continued from step 5 and now saves more often
    rotate_checkpoints(tmp_path, keep=1)
    assert [item.step for item in list_checkpoints(tmp_path)] == [7]


def test_what_cannot_be_deleted_is_said_and_no_reason_to_stop(tmp_path, capsys, monkeypatch):
    for step in (5, 10, 15):
        save(tmp_path, step)

    def refuse(one: Path, other: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(one))

    monkeypatch.setattr(os, "rename", refuse)
    rotate_checkpoints(tmp_path, keep=1)
    assert capsys.readouterr().err.count("an old checkpoint cannot be deleted") == 2


@pytest.mark.parametrize("name", ["step-7", "step-00000a", "step-²²²²²²", "step--00001", "other", "step-" + "9" * 200])
def test_folders_of_other_names_are_no_checkpoints(tmp_path, name):
    (tmp_path / name).mkdir()
    assert list_checkpoints(tmp_path) == []


def test_a_checkpoint_is_whole_also_where_a_secret_was_taken_out_of_it(tmp_path):
    token = "hf_" + "a1" * 17
    with staged_checkpoint(tmp_path, 5, {}) as stage:
        (stage / "adapter_config.json").write_text(f'{{"token": "{token}"}}')
    newest, passed_over = newest_whole(tmp_path)
    assert newest is not None, passed_over
    assert token not in (newest.path / "adapter_config.json").read_text()
