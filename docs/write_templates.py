"""The table of docs/templates.md: what becomes of each kind of content under each chat template of the tests.

    .venv/bin/python docs/write_templates.py

`tests/data/render/test_template_table.py` fails when a line of the table is no longer true. It takes a minute.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the tests are no package that is installed

import trl  # noqa: E402

from tests.data.conftest import make_tokenizer  # noqa: E402
from tests.data.render.template_table import COLUMNS, table_row  # noqa: E402
from tests.data.render.templates import GROUPS, OF_TRL  # noqa: E402

PAGE = ROOT / "docs" / "templates.md"
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def groups() -> Iterator[tuple[str, dict[str, str]]]:
    """Common behaviour of the templates of a group, and their names."""
    yield from GROUPS.items()
    yield f"those that ship inside trl {trl.__version__}", OF_TRL


def table() -> str:
    """The lines between the two comments of the page."""
    lines = []
    for what, templates in groups():
        head = f"{what[0].upper()}{what[1:]}"
        lines += ["", f"**{head}**", "", f"| template | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
        for name, template in templates.items():
            line, faults = table_row(name, template, make_tokenizer)
            if faults:
                raise SystemExit(f"{name}: {faults[0]}")
            lines.append(line)
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    text = PAGE.read_text("utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), text), "utf-8")
    print(f"wrote {PAGE}")
