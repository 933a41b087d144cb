"""Files and folders are replaced whole."""

from __future__ import annotations

import pytest

from qlora_cli.run.files import replaced_folder, write_json, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "manifest.json"
    write_json(path, {"status": "started"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert "started" in path.read_text()
    assert [item.name for item in tmp_path.iterdir()] == ["manifest.json"]


def test_text_is_replaced(tmp_path):
    write_text(tmp_path / "recipe.yaml", "old")
    write_text(tmp_path / "recipe.yaml", "new")
    assert (tmp_path / "recipe.yaml").read_text() == "new"


def test_a_folder_is_replaced_only_when_it_is_whole(tmp_path):
    out = tmp_path / "adapter"
    with replaced_folder(out) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), replaced_folder(out) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (out / "a").read_text() == "old"
    with replaced_folder(out) as folder:
        (folder / "b").write_text("new")
    assert [item.name for item in out.iterdir()] == ["b"]
    assert [item.name for item in tmp_path.iterdir()] == ["adapter"]
