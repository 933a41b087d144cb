"""A tuned model of the tests, merged by the writer alone."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from qlora_cli.deploy.fold_plan import fold_plan, plain_skeleton
from qlora_cli.deploy.merged_model import write_model
from qlora_cli.deploy.written_weights import WrittenWeights
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection


def write_merged(tuned: PeftModel, base: Path, out: Path, dtype: torch.dtype | None = None) -> WrittenWeights:
    """Weights, config and other files of the merged model, in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    source = TunedSource(out, ModelSection(base_model=str(base)))
    return write_model(out, source, plain_skeleton(tuned), fold_plan(tuned), dtype=dtype)
