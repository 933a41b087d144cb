"""How much each input column of a linear layer matters: the mean square of what comes in, on rows of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, PreTrainedModel

from qlora_cli.model.towers.auto_class import auto_class
from qlora_cli.progress import progress


@torch.no_grad()
def write_importance(plain: Path, rows: Sequence[Sequence[int]], file: Path, *, trust_code: bool) -> None:
    """Write float32 [columns] under the name of each linear layer of a model folder."""
    config = AutoConfig.from_pretrained(plain, trust_remote_code=trust_code)
    model: PreTrainedModel = auto_class(config).from_pretrained(plain, trust_remote_code=trust_code).eval()
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor) -> None:
        squares = inputs.detach().float().flatten(0, -2).pow(2).sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with progress("measuring what matters", len(rows)) as phase:
        for row in rows:
            model(input_ids=torch.tensor([list(row)], device=model.device), use_cache=False)
            phase.advance()
    for hook in hooks:
        hook.remove()
    num_tokens = sum(map(len, rows))
    save_file({name: (values / num_tokens).cpu() for name, values in sums.items()}, file)
