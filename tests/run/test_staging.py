from pathlib import Path

import pytest

from qlora_cli.errors import ArgumentError
from qlora_cli.run.inventory import INVENTORY_NAME
from qlora_cli.run.staging import staged_folder


def test_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "a" / "out"
    with staged_folder(out, force=False) as stage:
        (stage / "config.json").write_text("{}")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "config.json").read_text() == "{}"


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_a_block_that_fails(tmp_path, fault):
    with pytest.raises(fault), staged_folder(tmp_path / "out", force=False) as stage:
        (stage / "config.json").write_text("{}")
        raise fault
    assert list(tmp_path.iterdir()) == []


def made_model(out: Path) -> Path:
    with staged_folder(out, force=False) as stage:
        (stage / "config.json").write_text("old")
    return out


def test_the_old_model_stays_when_its_replacement_fails(tmp_path):
    out = made_model(tmp_path / "out")
    with pytest.raises(ValueError, match="broken"), staged_folder(out, force=True):
        raise ValueError("broken")
    assert (out / "config.json").read_text() == "old"


def test_force_replaces_a_model_folder_and_what_others_put_there_stays(tmp_path, capsys):
    out = made_model(tmp_path / "out")
    (out / "notes").mkdir()
    (out / "notes" / "a.txt").write_text("mine")
    with staged_folder(out, force=True) as stage:
        (stage / "new.json").write_text("{}")
    assert sorted(path.name for path in out.iterdir()) == [INVENTORY_NAME, "new.json", "notes"]
    assert (out / "notes" / "a.txt").read_text() == "mine"
    assert f"kept in {out}, not written by qlora: notes/" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["thesis.tex", "config.json", "model.safetensors"])
def test_force_spares_a_folder_that_qlora_did_not_write(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("years of work")
    with pytest.raises(ArgumentError, match="was not written by qlora"), staged_folder(out, force=True):
        pass
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "years of work")]


def test_force_spares_a_model_that_another_program_has_saved_over(tmp_path):
    out = made_model(tmp_path / "out")
    (out / "config.json").write_text("mine")
    with pytest.raises(ArgumentError, match="has changed since"), staged_folder(out, force=True):
        pass
    assert (out / "config.json").read_text() == "mine"


def test_an_empty_folder_may_be_named(tmp_path):
    with staged_folder(tmp_path, force=False) as stage:
        (stage / "config.json").write_text("{}")
    assert (tmp_path / "config.json").is_file()


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ArgumentError, match="is a file"), staged_folder(tmp_path / "out", force=True):
        pass
