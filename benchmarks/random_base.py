"""A base model of any size with random weights, as a folder that `from_pretrained` loads."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_cli.model.tiny_tokenizer import train_tokenizer

STANDARD_DEVIATION = 0.02
"""Of every weight matrix: Llama's `initializer_range`."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; the defaults are those of Llama-3.1-8B."""

    hidden: int = 4096
    intermediate: int = 14_336
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 128_256


def write_random_base(folder: Path, shape: Shape, max_length: int, device: torch.device) -> int:
    """Write configuration, weights in bfloat16 and a byte-level tokenizer; returns the number of parameters.

    One safetensors file for each layer, so that only one layer is in memory at a time.

    Args:
        folder: made if missing; takes 2 bytes a parameter, 16 GB for the default shape.
        shape: sizes of the model.
        max_length: longest row in tokens.
        device: where the random numbers are drawn; a GPU does it faster.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        max_position_embeddings=max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        dtype="bfloat16",
    )
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(config)
    shapes = {name: parameter.shape for name, parameter in skeleton.named_parameters()}
    _check_disk(folder, shapes)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    train_tokenizer(["some text"], 264, max_length).save_pretrained(folder)
    _write_shards(folder, shapes, device)
    return sum(size.numel() for size in shapes.values())


def _check_disk(folder: Path, shapes: dict[str, torch.Size]) -> None:
    num_bytes, num_free = 2 * sum(size.numel() for size in shapes.values()), shutil.disk_usage(folder).free
    if num_free < num_bytes:
        sys.exit(f"not run: {num_bytes / 1e9:.1f} GB of disk needed, {num_free / 1e9:.1f} GB free; see --workdir")


def _write_shards(folder: Path, shapes: dict[str, torch.Size], device: torch.device) -> None:
    torch.manual_seed(0)
    files: dict[str, list[str]] = {}
    for name in shapes:
        files.setdefault(_file_of(name), []).append(name)
    for file, names in files.items():
        save_file(_random_tensors(names, shapes, device), folder / file, metadata={"format": "pt"})
    num_bytes = 2 * sum(size.numel() for size in shapes.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": {name: _file_of(name) for name in shapes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _random_tensors(
    names: Sequence[str], shapes: dict[str, torch.Size], device: torch.device
) -> dict[str, torch.Tensor]:
    tensors = {}
    for name in names:
        tensor = torch.ones(shapes[name], dtype=torch.bfloat16, device=device)
        tensors[name] = (tensor if "norm" in name else tensor.normal_(std=STANDARD_DEVIATION)).cpu()
    return tensors


def _file_of(parameter_name: str) -> str:
    """The shard of a parameter.

    >>> _file_of("model.layers.3.mlp.up_proj.weight"), _file_of("lm_head.weight")
    ('model-layer-3.safetensors', 'model-rest.safetensors')
    """
    parts = parameter_name.split(".")
    return f"model-layer-{parts[2]}.safetensors" if parts[1] == "layers" else "model-rest.safetensors"
