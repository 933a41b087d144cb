import pytest

from qlora_cli.deploy.staging import staged_folder
from qlora_cli.errors import ArgumentError


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


def test_the_old_model_stays_when_its_replacement_fails(tmp_path):
    (tmp_path / "config.json").write_text("old")
    with pytest.raises(ValueError, match="broken"), staged_folder(tmp_path, force=True):
        raise ValueError("broken")
    assert (tmp_path / "config.json").read_text() == "old"


def test_force_replaces_a_model_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    with staged_folder(out, force=True) as stage:
        (stage / "new.json").write_text("{}")
    assert [path.name for path in out.iterdir()] == ["new.json"]


def test_force_spares_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArgumentError, match=r"no config\.json"), staged_folder(tmp_path, force=True):
        pass
    assert (tmp_path / "thesis.tex").is_file()


def test_an_empty_folder_may_be_named(tmp_path):
    with staged_folder(tmp_path, force=False) as stage:
        (stage / "config.json").write_text("{}")
    assert (tmp_path / "config.json").is_file()


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ArgumentError, match="is a file"), staged_folder(tmp_path / "out", force=True):
        pass
