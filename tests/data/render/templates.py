"""The chat templates of the table in docs/templates.md: minimal ones of our own, and those that ship inside trl.

Ours are one for each shape that the templates of model families have. Each does the one or two things by which its
family differs from plain ChatML, and no more. Their words are short or the family's own control tokens; nothing of a
published template is repeated. The folder that a template lies in says what is particular about it.
"""

from __future__ import annotations

from pathlib import Path

import trl

FOLDER = Path(__file__).parent / "shapes"


def _read(paths: list[Path], prefix: str = "") -> dict[str, str]:
    return {prefix + path.stem: path.read_text("utf-8") for path in sorted(paths)}


GROUPS = {folder.name.replace("_", " "): _read([*folder.glob("*.jinja")]) for folder in sorted(FOLDER.iterdir())}
"""What is particular -> our templates by name."""

SHAPES = {name: template for templates in GROUPS.values() for name, template in templates.items()}

OF_TRL = _read([*(Path(trl.__file__).parent / "chat_templates").glob("*.jinja")], prefix="trl ")
"""Their names begin with "trl "."""

TEMPLATES = SHAPES | OF_TRL
