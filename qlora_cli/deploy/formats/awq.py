"""AWQ: refused, with what has taken its place."""

from __future__ import annotations

from pathlib import Path

from qlora_cli.deploy.engines.engine import Answers, Engine, Questions
from qlora_cli.deploy.formats.format import Format, FormatOptions, WriteJob
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tuned import TunedSource


def check(_: TunedSource, options: FormatOptions) -> None:
    """Refuse it.

    Raises:
        ArgumentError: always.
    """
    raise ArgumentError(
        "AWQ is not written: its library, AutoAWQ, is archived",
        hint="use --format compressed-tensors --quant w4a16, 4-bit weights that vLLM and transformers load",
    )


def write(job: WriteJob) -> None:
    """Refuse it, as `check`."""
    check(job.source, job.options)


def ask(folder: Path, questions: Questions) -> Answers:
    """There is nothing to open.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{folder} cannot be of a format that is not written ({len(questions.rows)} rows asked)")


FORMAT = Format(write, Engine("AutoAWQ", "", lambda: None, ask), check=check)
