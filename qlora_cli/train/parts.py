"""What a trainer is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback

from qlora_cli.data.collator import Collator
from qlora_cli.data.packed_rows import PackedRows
from qlora_cli.train.ranks import Ranks


@dataclass(frozen=True)
class TrainerParts:
    """Model, rows and callbacks of one process."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    collator: Collator
    train_rows: PackedRows
    eval_rows: PackedRows
    callbacks: tuple[TrainerCallback, ...]
    rows_at_once: int
    """Rows of a forward pass; the rows of a batch are done in several where it has more."""

    ranks: Ranks = field(default_factory=Ranks)
    """The processes that train together; the trainer itself knows of this one only."""

    is_asked_to_stop: Callable[[], bool] = bool
    """Whether a signal has come to this process."""

    loraplus_lr_ratio: float | None = None
    """Learning rate of the adapters' B over that of A; None for one learning rate."""
