"""What a killed process leaves."""

from __future__ import annotations

from pathlib import Path

from qlora_cli.run.files import certify


def half_written_folder(out: Path, kind: str = "staging") -> Path:
    """A folder that was to become `out`, with half a file in it."""
    folder = out.with_name(f".{out.name}.new")
    folder.mkdir()
    (folder / "weights").write_bytes(b"half")
    return certify(folder, f".{out.name}.{kind}")


def half_written_file(out: Path) -> Path:
    """A file that was to become `out`."""
    path = out.with_name(f".{out.name}.new")
    path.write_text("{")
    return certify(path, f".{out.name}.staged")
