"""Recipe keys of measuring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from qlora_cli.choices import ExchangeFormat, Ignored, MetricName, TaskKind
from qlora_cli.recipe.coercions import as_tuple
from qlora_cli.recipe.section import Section


class TaskSection(Section):
    """A task: prompts with known answers."""

    path: str = Field(min_length=1)
    """Data in any format that `data.train` reads; the last assistant turn (or completion) is the answer."""

    kind: TaskKind | None = None
    """Answers are generated, or the likeliest of each row's `choices` is taken; the rows' columns say which."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name in tables and of the file with the answers; the file's stem when not given."""

    format: ExchangeFormat | None = None
    """Layout of a row; detected from the column names when not given."""

    columns: dict[str, str] = Field(default_factory=dict)
    """Format field -> column, as in a data source."""

    metrics: Annotated[tuple[MetricName, ...], BeforeValidator(as_tuple)] = Field(("exact_match",), min_length=1)
    """How a generated answer is scored."""

    json_schema: str | None = Field(None, min_length=1)
    """JSON Schema, a file, that `json_valid` holds answers against; without it any JSON is valid."""

    ignore: Annotated[tuple[Ignored, ...], BeforeValidator(as_tuple)] = ()
    """Left out of answer and reference before they are compared; not by `number_match`, `regex`, `choice`."""

    max_new_tokens: int = Field(256, ge=1, le=1_048_576)
    """Longest answer in tokens."""

    limit: int | None = Field(None, ge=1, le=1_000_000_000)
    """Use only this many examples, the first ones."""


class EvalSection(Section):
    """Measurement on held-out data."""

    eval_strategy: Literal["epoch", "steps", "no"] | None = None
    """When the eval loss is measured while training; `epoch` where there is eval data, else never."""

    eval_steps: int | None = Field(None, ge=1, le=1_000_000_000)
    """Optimizer steps between two measurements, with `eval_strategy: steps`."""

    per_device_eval_batch_size: int = Field(8, ge=1, le=65_536)
    """Rows, or prompts, in one forward pass."""

    tasks: Annotated[tuple[TaskSection, ...], BeforeValidator(as_tuple)] = ()
    """Tasks that `qlora eval` runs."""

    general_text: str = Field("shipped", min_length=1)
    """Text file whose loss shows what was forgotten; `shipped` is a small English one, `none` leaves it out."""
