"""A model in integers once more, with plain weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from qlora_cli.deploy.fold_plan import FoldPlan
from qlora_cli.deploy.merged_model import write_model
from qlora_cli.model.towers.auto_class import own_auto_class
from qlora_cli.model.towers.skeleton import bare_skeleton
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection


def write_plain_copy(folder: Path, out: Path, dtype: torch.dtype, *, trust_code: bool) -> None:
    """Write the model of `folder` into `out`, all its numbers in one type.

    Raises:
        ResourceError: if the disk has no room.
    """
    out.mkdir()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_code)
    source = TunedSource(folder, ModelSection(base_model=str(folder), trust_remote_code=trust_code))
    write_model(out, source, bare_skeleton(own_auto_class(config), config), FoldPlan(), dtype=dtype)
