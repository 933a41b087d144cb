"""The demo's terminal output as docs/demo.svg, from a real run.

    .venv/bin/python docs/record_demo.py            run recipes/demo.sh (minutes), keep its output, draw it
    .venv/bin/python docs/record_demo.py --redraw   draw the output of the last recording again

The output is kept as it came, colours and all, in runs/demo.ansi. Drawn is every line of it, but for those that only
say that a command is still at it, and for lines in a row that differ in their figures only: of these the first and the
last, with the number of those between.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
RECORDING = ROOT / "runs" / "demo.ansi"
DRAWING = ROOT / "docs" / "demo.svg"
WIDTH = 100
LONGEST_REPETITION = 3
CURSOR = re.compile(r"\x1b\[\?25[hl]")
"""Hide and show the cursor: nothing that could be drawn."""

WAITING = re.compile(r".* \.\.\.|.*, \d+(:\d+)* (s )?so far|[\w :]+ \d+/\d+")
"""Lines in place of a progress bar where there is no terminal; their number depends on the machine."""

TERMINAL = {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
"""Colours as in a terminal. Not interactive: of a progress bar only its last state is printed."""


def record() -> None:
    """Run the demo and keep what it prints, stdout and stderr in one stream.

    Raises:
        subprocess.CalledProcessError: if it fails; the recording of an earlier run stays.
    """
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, **TERMINAL, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(ROOT / "recipes" / "demo.sh")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode != 0:
        sys.stdout.buffer.write(done.stdout)
        done.check_returncode()
    RECORDING.parent.mkdir(exist_ok=True)
    RECORDING.write_bytes(done.stdout)


def shortened(lines: list[str]) -> list[str]:
    """The lines, long repetitions cut to their first and last.

    >>> shortened(["step 1", "step 2", "step 3", "step 4", "done"])
    ['step 1', '… 2 more lines like this', 'step 4', 'done']
    """
    kept: list[str] = []
    for shape, group in groupby(lines, key=lambda line: re.sub(r"[\d.,]+", "0", line)):
        same = list(group)
        is_cut = bool(shape.strip()) and len(same) > LONGEST_REPETITION
        kept += [same[0], f"… {len(same) - 2} more lines like this", same[-1]] if is_cut else same
    return kept


def plain(line: str) -> str:
    """The line without colours."""
    return Text.from_ansi(line).plain


def visible_lines(recording: str) -> list[str]:
    """The recording's lines, but for those that hold nothing but a change of the cursor, or that say to wait.

    >>> visible_lines("merging ...\\nloading the libraries, 1:07 so far\\nevaluating 0/1\\nstep 1/8  loss 2")
    ['step 1/8  loss 2']
    """
    lines = [(line, CURSOR.sub("", line)) for line in recording.strip().splitlines()]
    return [shown for line, shown in lines if (not line or shown) and not WAITING.fullmatch(plain(shown))]


def draw(recording: str) -> str:
    """The recording as SVG. It names no font on the network: the reader's own monospaced one is used."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in shortened(visible_lines(recording)):
        text = Text.from_ansi(line)
        if line.startswith("$ "):
            text.stylize("bold")
        console.print(text, highlight=False)
    drawing = console.export_svg(title="make demo", unique_id="demo")
    return re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL)


if __name__ == "__main__":
    if "--redraw" not in sys.argv[1:]:
        record()
    DRAWING.write_text(draw(RECORDING.read_text("utf-8")), encoding="utf-8")
    print(f"wrote {DRAWING.relative_to(ROOT)}")
