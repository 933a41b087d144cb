"""Size of the training: rows, tokens and steps, from the data where it is on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from qlora_cli.data.cache import cache_key, cache_root
from qlora_cli.data.prepare import prepare_data
from qlora_cli.data.read.sources import source_files
from qlora_cli.data.render.for_data import data_renderer
from qlora_cli.data.report import DataReport
from qlora_cli.errors import QloraError
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.schema import Recipe, TrainingSection

MAX_BYTES_READ = 64 * 10**6
"""A plan is there in seconds; larger files are left to `qlora data check`, whose result it uses."""


@dataclass(frozen=True)
class TrainingSize:
    """One run's amount of training."""

    num_rows: int
    """Rows of one epoch as the model gets them, packed ones where the recipe packs."""

    num_tokens: int
    """Tokens of these rows."""

    fill: float
    """Share of the packed rows' places that hold a token."""

    num_steps: int
    """Optimizer steps of the run."""

    @property
    def tokens_per_row(self) -> int:
        """On average."""
        return max(1, round(self.num_tokens / max(1, self.num_rows)))


def find_workload(recipe: Recipe, num_gpus: int = 1) -> tuple[TrainingSize | None, str]:
    """Rows, tokens and steps of the recipe's data on this many GPUs, or None and why they are not known."""
    try:
        files = [file for source in recipe.data.train for file in source_files(source)]
        if not all(source_files(source) for source in recipe.data.train):
            return None, "the data is on the Hub; `qlora data check` fetches it"
        renderer = data_renderer(load_tokenizer(recipe.model), recipe.data)
        seed = recipe.training.seed
        key = cache_key(recipe.data, renderer, seed)
        is_prepared = key is not None and (cache_root() / key).is_dir()
        if not is_prepared and sum(file.stat().st_size for file in files) > MAX_BYTES_READ:
            return None, "the data is large; run `qlora data check` once, then plan again"
        return training_size(prepare_data(recipe.data, renderer, seed).report, recipe.training, num_gpus), ""
    except QloraError as error:
        first = error.problems[0]
        return None, f"{first.place}: {first.text}" if first.place else first.text


def training_size(report: DataReport, training: TrainingSection, num_gpus: int = 1) -> TrainingSize:
    """The amount of training that a data report stands for."""
    return TrainingSize(
        report.num_packed_rows,
        report.num_tokens,
        report.fill,
        num_steps(report.num_packed_rows, training, num_gpus),
    )


def num_steps(num_rows: int, training: TrainingSection, num_gpus: int = 1) -> int:
    """Optimizer steps, counted as the trainer does: what is left at an epoch's end is a step of its own.

    >>> num_steps(33, TrainingSection(per_device_train_batch_size=4, gradient_accumulation_steps=4, num_train_epochs=2))
    6
    >>> num_steps(33, TrainingSection(per_device_train_batch_size=4, gradient_accumulation_steps=1), num_gpus=2)
    15
    """
    if training.max_steps is not None:
        return training.max_steps
    batches = ceil(num_rows / (training.rows_at_once * num_gpus))
    return ceil(training.epochs * max(1, ceil(batches / training.num_passes)))
