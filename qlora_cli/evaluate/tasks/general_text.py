"""Running text that no run was trained on: its loss shows what was forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Place, PlainText
from qlora_cli.data.render.renderer import Renderer, TokenRow
from qlora_cli.errors import DataError
from qlora_cli.evaluate.tasks.held_out import LossTask
from qlora_cli.evaluate.tasks.task import Subject
from qlora_cli.model.embedding_limits import num_positions
from qlora_cli.run.eval_results import GENERAL_TEXT

SHIPPED = Path(__file__).parent / "general_text.txt"
CHUNK_CHARACTERS = 500
"""Text of one row, about; paragraphs stay together where they fit."""

MAX_ROW_TOKENS = 1024


def general_text_task(name: str) -> LossTask | None:
    """The task for `eval.general_text`: `shipped`, `none`, or the path of a text file.

    Raises:
        DataError: if the file cannot be read, or is empty.
    """
    if name == "none":
        return None
    path = SHIPPED if name == "shipped" else Path(name).expanduser()
    try:
        text = path.read_text("utf-8")
    except OSError as fault:
        raise DataError(
            f"cannot be read: {fault.strerror}", place=name, hint="name a text file, or --general-text none"
        ) from fault
    except UnicodeDecodeError as fault:
        raise DataError(f"is not UTF-8: {fault.reason} at byte {fault.start}", place=name) from fault
    pieces = chunks(text)
    if not pieces:
        raise DataError("holds no text", place=name, hint="name a text file, or --general-text none")
    examples = [PlainText("", piece, Place(path.name, line, row)) for row, (line, piece) in enumerate(pieces, 1)]
    return GeneralText(examples)


class GeneralText(LossTask):
    """The loss on running text, chunk by chunk."""

    def __init__(self, examples: Sequence[PlainText]) -> None:
        super().__init__(GENERAL_TEXT, lambda renderer: _rows(renderer, examples), by_source=False)

    def check(self, subject: Subject) -> None:
        """Cut chunks to the context of a model that is shorter."""
        context = num_positions(subject.tuned.model.config)
        if context is not None:
            for row in self.rows(subject.renderer):
                del row.input_ids[context:], row.labels[context:]
        super().check(subject)


def _rows(renderer: Renderer, examples: Sequence[PlainText]) -> list[TokenRow]:
    rows = renderer.render(examples)
    for row in rows:
        row.labels[-1] = IGNORE_INDEX  # a chunk ends where the text goes on
        del row.input_ids[MAX_ROW_TOKENS:], row.labels[MAX_ROW_TOKENS:]
    return rows


def chunks(text: str) -> list[tuple[int, str]]:
    """The text in pieces of whole paragraphs, each with the line that it begins on.

    A paragraph that is longer than a piece is one.

    >>> chunks("one\\n\\ntwo\\n\\n\\n" + "x" * 600)[0], [line for line, _ in chunks("one\\n\\n" + "x" * 600)]
    ((1, 'one\\n\\ntwo'), [1, 3])
    """
    pieces: list[tuple[int, str]] = []
    line = 1
    for paragraph in text.split("\n\n"):
        stripped = paragraph.strip("\n")
        first = line + len(paragraph) - len(paragraph.lstrip("\n"))
        line += paragraph.count("\n") + 2
        if not stripped.strip():
            continue
        if pieces and len(pieces[-1][1]) + len(stripped) < CHUNK_CHARACTERS:
            pieces[-1] = (pieces[-1][0], f"{pieces[-1][1]}\n\n{stripped}")
        else:
            pieces.append((first, stripped))
    return pieces
