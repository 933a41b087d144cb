"""Bases as FP8 and MXFP4 releases store them, written tensor by tensor, each beside its plain weights.

Nothing here calls a library that packs or unpacks: the formats are those of DeepSeek-V3's and gpt-oss's releases.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])

SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 256,
}


def packed_base(kind: str, folder: Path, *, vocab_size: int = 256, tokenizer: Path | None = None) -> tuple[Path, Path]:
    """A base stored as `kind`, and one with the plain weights in bfloat16 that it means.

    Args:
        kind: "fp8", "fp8 experts" or "mxfp4".
        folder: where to; two folders are made in it.
        tokenizer: folder whose other files are put beside the weights.
    """
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": vocab_size}
    moe = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
    if kind == "fp8":
        model = Qwen3ForCausalLM(Qwen3Config(hidden_size=128, intermediate_size=256, **sizes))
    elif kind == "fp8 experts":
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(hidden_size=128, num_experts=4, **sizes, **moe))
    else:
        rope = {"rope_type": "default", "rope_theta": 10_000.0}
        config = {"intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}
        model = GptOssForCausalLM(GptOssConfig(hidden_size=64, rope_parameters=rope, **sizes, **config))
    plain, packed = folder / "plain", folder / "packed"
    model.to(torch.bfloat16).save_pretrained(plain)
    stored, meant = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        tensors, value = _pack(name, weight, is_fp8=kind != "mxfp4")
        stored |= {key: tensor.contiguous() for key, tensor in tensors.items()}
        meant[name] = value.to(torch.bfloat16).contiguous()
    packed.mkdir(parents=True)
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    section = MXFP4 if kind == "mxfp4" else FP8
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    for file in [] if tokenizer is None else tokenizer.glob("*token*"):
        shutil.copy(file, packed)
        shutil.copy(file, plain)
    return packed, plain


def _pack(name: str, weight: torch.Tensor, *, is_fp8: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The stored tensors of a weight, and its value."""
    if is_fp8 and name.endswith("proj.weight"):
        height = min(128, weight.shape[0])
        blocks = weight.float().reshape(weight.shape[0] // height, height, -1, 128)
        scale = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        value = (codes.float() * scale[:, None, :, None]).reshape(weight.shape)
        return {name: codes.reshape(weight.shape), f"{name}_scale_inv": scale}, value
    if not is_fp8 and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        groups = weight.float().transpose(1, 2).unflatten(-1, (-1, 32))
        exponent = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
        nearest = (groups * 2.0 ** -exponent[..., None])[..., None] - E2M1
        codes = nearest.abs().argmin(-1)
        value = (E2M1[codes] * 2.0 ** exponent[..., None]).flatten(-2).transpose(1, 2)
        pairs = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        return {f"{name}_blocks": pairs, f"{name}_scales": (exponent + 127).to(torch.uint8)}, value
    return {name: weight}, weight
