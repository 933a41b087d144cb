"""Bases in integers as others release them, written word by word: W4A16 of compressed-tensors, and GPTQ.

Nothing here calls a library that packs or unpacks. Each comes with the plain weights that it means, in float32.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import torch
from safetensors.torch import load_file, save_file

KEPT = ("lm_head", "embed_tokens")


def words(codes, bits):
    """Rows of codes as int32 words [..., n * bits / 32]; the lowest bits come first."""
    places = (codes.numpy()[..., None] >> np.arange(bits)) & 1
    packed = np.packbits(places.reshape(*codes.shape[:-1], -1).astype(np.uint8), axis=-1, bitorder="little")
    return torch.from_numpy(packed.view(np.int32).copy())


def write(base, out, parts_of, section):
    """Copy a base with other tensors in the place of its linear weights.

    Args:
        parts_of: gives the tensors of a weight by the ends of their names, and the weight that they mean.

    Returns:
        The weights that the tensors mean, by the names of plain ones.
    """
    shutil.copytree(base, out)
    tensors, plain = {}, {}
    for key, tensor in load_file(base / "model.safetensors").items():
        if tensor.dim() != 2 or any(name in key for name in KEPT):
            tensors[key] = plain[key] = tensor
            continue
        parts, plain[key] = parts_of(tensor.float())
        tensors |= {f"{key.removesuffix('weight')}{part}": value for part, value in parts.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return plain


def w4a16_section(group_size=32, **weights):
    strategy = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    settings = {"num_bits": 4, "type": "int", "symmetric": True, "dynamic": False} | strategy | weights
    group = {"targets": ["Linear"], "weights": settings, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def w4a16_base(base, out, *, group_size=32, dtype=torch.bfloat16):
    """W4A16 rounded to nearest; a group size of None is a scale a row."""

    def parts_of(weight):
        groups = weight.unflatten(1, (-1, group_size or weight.shape[1]))
        scales = (groups.abs().amax(-1) / 7.5).to(dtype)
        codes = (groups / scales.float()[..., None]).round().clamp(-8, 7)
        plain = (codes * scales.float()[..., None]).flatten(1)
        packed = words((codes + 8).flatten(1).to(torch.uint8), 4)
        shape = torch.tensor(weight.shape)
        return {"weight_packed": packed, "weight_scale": scales, "weight_shape": shape}, plain

    return write(base, out, parts_of, w4a16_section(group_size))


def gptq_section(bits=4, group_size=32, **settings):
    return {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": False, "sym": True} | settings


def gptq_base(base, out, *, bits=4, group_size=32, layout="gptq", is_symmetric=True, order=None, zero=None):
    """GPTQ's layout with rounding to nearest.

    Args:
        order: groups of the inputs instead of neighbours, [I].
        zero: zero point of all groups instead of the one that fits.
    """

    def parts_of(weight):
        groups = weight.unflatten(1, (-1, weight.shape[1] if group_size < 0 else group_size))
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        if is_symmetric:
            low, high = -torch.maximum(-low, high), torch.maximum(-low, high)
        scales = ((high - low) / (2**bits - 1)).half()
        zeros = (-low / scales.float()).round().clamp(1, 2**bits - 1)
        zeros = torch.full_like(zeros, 2 ** (bits - 1)) if is_symmetric else zeros
        zeros = zeros if zero is None else torch.full_like(zeros, zero)
        codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 2**bits - 1)
        plain = ((codes - zeros[..., None]) * scales.float()[..., None]).flatten(1)
        stored = (zeros - int(layout == "gptq")).to(torch.int64) & (2**bits - 1)
        index = torch.arange(weight.shape[1]) // groups.shape[-1] if order is None else order(weight.shape[1])
        return {
            "qweight": words(codes.flatten(1).to(torch.uint8), bits).T.contiguous(),
            "qzeros": words(stored.T.contiguous().to(torch.uint8), bits),
            "scales": scales.T.contiguous(),
            "g_idx": index.to(torch.int32),
        }, plain

    section = gptq_section(bits, group_size, checkpoint_format=layout, sym=is_symmetric)
    return write(base, out, parts_of, section)
