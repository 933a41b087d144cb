"""Model folders in integers, made from plain ones by arithmetic that can be read at a glance."""

from __future__ import annotations

import json
import shutil

import numpy as np
import torch
from safetensors.torch import load_file, save_file

KEPT = ("lm_head", "embed_tokens")


def pack(codes, bits):
    """Codes as a string of bits, the lowest first."""
    text = "".join(format(code, f"0{bits}b")[::-1] for code in codes)
    return [int(text[start : start + 8][::-1], 2) for start in range(0, len(text), 8)]


def unpack(packed, bits):
    """Rows of codes as lists."""
    texts = ["".join(format(byte, "08b")[::-1] for byte in row) for row in packed.tolist()]
    return [[int(text[start : start + bits][::-1], 2) for start in range(0, len(text), bits)] for text in texts]


def quantize(weight, bits, group_size):
    """Codes [O, I], float16 scales and offsets [O, G] of a weight [O, I]: from the smallest to the largest."""
    groups = weight.float().reshape(len(weight), -1, group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    scales, offsets = ((high - low) / (2**bits - 1)).half(), low.half()
    codes = (groups - offsets.float()[..., None]) / scales.float()[..., None]
    return codes.round().clamp(0, 2**bits - 1).reshape(weight.shape).to(torch.uint8), scales, offsets


def save_integers(base, out, *, bits, group_size, is_merged=False):
    """The model of `base` in integers; a merged one has float32 offsets that float16 does not hold."""
    shutil.copytree(base, out)
    tensors = {}
    for key, tensor in load_file(base / "model.safetensors").items():
        if tensor.dim() != 2 or any(name in key for name in KEPT):
            tensors[key] = tensor.bfloat16()
            continue
        name = key.removesuffix("weight")
        codes, scales, offsets = quantize(tensor, bits, group_size)
        tensors[f"{name}codes"] = torch.tensor(np.array([pack(row, bits) for row in codes.tolist()], dtype=np.uint8))
        tensors[f"{name}scales"] = scales
        tensors[f"{name}offsets"] = offsets.float() + 1e-4 * torch.randn(offsets.shape) if is_merged else offsets
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "qlora_int",
        "bits": bits,
        "group_size": group_size,
        "calibration": "none",
        "modules_to_not_convert": ["lm_head"],
    }
    (out / "config.json").write_text(json.dumps(config))
    return out


def dequantized(folder, bits):
    """Plain weights of a folder in integers, float32, by the names that they would have."""
    stored = load_file(folder / "model.safetensors")
    plain = {key: tensor.float() for key, tensor in stored.items() if key.endswith("weight")}
    for key in [key for key in stored if key.endswith("codes")]:
        name = key.removesuffix("codes")
        scales, offsets = stored[f"{name}scales"].float(), stored[f"{name}offsets"].float()
        codes = torch.tensor(unpack(stored[key], bits)).reshape(*scales.shape, -1)
        plain[f"{name}weight"] = (codes * scales[..., None] + offsets[..., None]).flatten(1)
    return plain
