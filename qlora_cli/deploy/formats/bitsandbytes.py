"""Weights as bitsandbytes stores them, for transformers alone: vLLM reads them no more.

Each file of the checkpoint becomes one file. The layout is what `save_pretrained` writes of a model that was loaded
with such a quantization.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors.torch import save_file

from qlora_cli.deploy.checkpoint import Checkpoint, open_checkpoint
from qlora_cli.deploy.engines.engine import Engine
from qlora_cli.deploy.engines.install import engine_version
from qlora_cli.deploy.engines.script_call import SCRIPTS, ask_script
from qlora_cli.deploy.formats.format import Format, WriteJob
from qlora_cli.deploy.formats.linear_weights import WEIGHT, LinearWeights, linear_weights
from qlora_cli.deploy.weights_file import INDEX
from qlora_cli.engine_environment import TRANSFORMERS
from qlora_cli.model.other_files import copy_other_files
from qlora_cli.progress import progress

QUANTS = ("nf4", "int8")
BLOCK_SIZE = 64
"""Weights that share a constant in NF4."""


def write(job: WriteJob) -> None:
    """Write the model; a file of the checkpoint is in memory at a time.

    Raises:
        ArgumentError: if the model has no layer that the format can hold.
    """
    quant = job.options.quant or QUANTS[0]
    copy_other_files(job.plain, job.out)
    with open_checkpoint(job.plain) as checkpoint:
        trust = job.source.model.trust_remote_code
        linear = linear_weights(checkpoint, job.plain, multiple=1, trust_code=trust)
        with progress("writing the weights", len(checkpoint.tensors)) as phase:
            weight_map: dict[str, str] = {}
            total_size = 0
            for file in checkpoint.files:
                tensors: dict[str, torch.Tensor] = {}
                for key in (key for key, tensor in checkpoint.tensors.items() if tensor.file == file):
                    tensors |= _stored(checkpoint, key, quant if key in linear.chosen else None)
                    phase.advance()
                save_file(tensors, job.out / file.name, metadata=checkpoint.metadata.get(file, {"format": "pt"}))
                weight_map |= dict.fromkeys(tensors, file.name)
                total_size += sum(tensor.nbytes for tensor in tensors.values())
    if (job.plain / INDEX).is_file():
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (job.out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _write_config(job.out, linear, quant)


def _stored(checkpoint: Checkpoint, key: str, quant: str | None) -> dict[str, torch.Tensor]:
    """The tensors that stand for one of the checkpoint."""
    weight = checkpoint.read(key)
    if quant is None:
        return {key: weight}
    if quant == "int8":
        codes, scale, _ = bnb.functional.int8_vectorwise_quant(weight.half())
        name = key.removesuffix(WEIGHT)
        return {key: codes, f"{name}.SCB": scale, f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    packed, state = bnb.functional.quantize_4bit(
        weight, blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4", quant_storage=torch.uint8
    )
    return {key: packed} | {f"{key}.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}


def _write_config(out: Path, linear: LinearWeights, quant: str) -> None:
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    settings: dict[str, Any] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": quant == "nf4",
        "load_in_8bit": quant == "int8",
        "llm_int8_skip_modules": [name for name in linear.left if not name.startswith("re:")],
    }
    if quant == "nf4":
        dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        settings |= {
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
        }
    config["quantization_config"] = settings
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


ENGINE = Engine(
    "transformers with bitsandbytes",
    TRANSFORMERS.install,
    partial(engine_version, TRANSFORMERS),
    partial(ask_script, TRANSFORMERS, SCRIPTS / "transformers_ask.py"),
)
FORMAT = Format(write, ENGINE, quants=QUANTS, smallest_first=QUANTS, larger=("int8",), rounds_as_training=True)
