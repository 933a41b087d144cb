"""What a run stands on, as its manifest records it."""

from __future__ import annotations

import datetime
import hashlib
import platform
import time
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from qlora_cli.data.prepare import PreparedData
from qlora_cli.model.device import dtype_name, pick_device, pick_dtype
from qlora_cli.model.fingerprint import fingerprint_base
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.manifest import library_versions

Facts = dict[str, dict[str, Any]]
"""Section of the manifest -> values; each section has a `fingerprint`."""


def ground_facts(
    recipe: Recipe,
    prepared: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    printed_date: datetime.date | None = None,
) -> Facts:
    """Identity of base, tokenizer, template and data; a resumed run must find the same.

    Args:
        printed_date: today, as the rows hold it, where the chat template prints it.
    """
    vocabulary = tokenizer.backend_tokenizer.to_str().encode()
    return {
        "base": {
            "base_model": recipe.model.base_model,
            "revision": recipe.model.revision,
            "fingerprint": fingerprint_base(recipe.model),
        },
        "tokenizer": {"fingerprint": hashlib.sha256(vocabulary).hexdigest()},
        "template": {"fingerprint": hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()},
        "data": {
            "fingerprint": prepared.fingerprint,
            "num_train_rows": prepared.report.num_train,
            "num_eval_rows": prepared.report.num_eval,
            **({"date": str(printed_date)} if printed_date else {}),
        },
    }


def circumstances(recipe: Recipe) -> dict[str, Any]:
    """When, with what and on what the run was started."""
    device = pick_device()
    is_gpu = device.type == "cuda"
    return {
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": library_versions(),
        "hardware": {
            "device": torch.cuda.get_device_name(device) if is_gpu else "cpu",
            "machine": platform.machine(),
            "num_threads": torch.get_num_threads(),
        },
        "dtype": dtype_name(pick_dtype(recipe.model.dtype, device)),
        "seed": recipe.training.seed,
    }
