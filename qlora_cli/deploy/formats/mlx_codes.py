"""A model in integers as MLX's affine format holds it: the codes of training, and a scale and a bias for each group.

MLX computes w = scale * code + bias, and packs codes as we do: a string of bits, the first code in the lowest ones,
here read as 32-bit words. So the codes are copied, and nothing is rounded: scales and biases are float32, as are the
vectors of norms, and with them all that MLX computes.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import torch

from qlora_cli.deploy.checkpoint import FLOATS, Checkpoint, StoredTensor, open_checkpoint
from qlora_cli.deploy.formats.format import WriteJob
from qlora_cli.deploy.integers import integer_settings
from qlora_cli.deploy.weights_file import INDEX, NewTensor, WeightsFile
from qlora_cli.model.other_files import copy_other_files
from qlora_cli.progress import progress
from qlora_cli.run.disk_errors import refuse_full_disk

NAMES = {"codes": "weight", "scales": "scales", "offsets": "biases"}
"""Our part of a layer -> MLX's."""

BYTES_OF_WORD = torch.uint32.itemsize


def quant_of_codes(bits: int) -> str:
    """The type of MLX that holds codes of so many bits.

    >>> quant_of_codes(4)
    '4bit'
    """
    return f"{bits}bit"


def write_codes(job: WriteJob) -> None:
    """Write a merged model in integers as a folder of mlx-lm.

    Raises:
        ResourceError: if the disk has no room.
    """
    copy_other_files(job.plain, job.out)
    with open_checkpoint(job.plain, as_stored=True) as checkpoint, ExitStack() as stack:
        places: dict[str, WeightsFile] = {}
        files = []
        for file in checkpoint.files:
            tensors = [tensor for tensor in checkpoint.tensors.values() if tensor.file == file]
            laid_out = WeightsFile(job.out / file.name, [_of_mlx(tensor) for tensor in tensors], {"format": "mlx"})
            places |= {tensor.key: laid_out for tensor in tensors}
            files.append(laid_out)
        refuse_full_disk(job.out, sum(file.num_bytes for file in files))
        for laid_out in files:
            stack.enter_context(laid_out.opened())
        with progress("writing the weights", len(checkpoint.tensors)) as phase:
            for tensor in checkpoint.tensors.values():
                _write(checkpoint, tensor, places[tensor.key])
                phase.advance()
    if (job.plain / INDEX).is_file():
        weight_map = {_of_mlx(checkpoint.tensors[key]).key: file.path.name for key, file in places.items()}
        content = {"metadata": {"total_size": sum(file.num_bytes for file in files)}, "weight_map": weight_map}
        (job.out / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _write_config(job.plain, job.out)


def _of_mlx(tensor: StoredTensor) -> NewTensor:
    """The tensor that takes the place of one of ours."""
    layer, _, part = tensor.key.rpartition(".")
    if part not in NAMES:
        is_vector = tensor.dtype in FLOATS and len(tensor.shape) == 1
        return NewTensor(tensor.key, torch.float32 if is_vector else tensor.dtype, tensor.shape)
    key = f"{layer}.{NAMES[part]}"
    if part == "codes":
        num_rows, num_bytes = tensor.shape
        return NewTensor(key, torch.uint32, (num_rows, num_bytes // BYTES_OF_WORD))
    return NewTensor(key, torch.float32, tensor.shape)


def _write(checkpoint: Checkpoint, tensor: StoredTensor, file: WeightsFile) -> None:
    new = _of_mlx(tensor)
    if new.num_bytes == tensor.num_bytes:
        file.copy(new.key, checkpoint.descriptor(tensor.file), tensor.offset, tensor.num_bytes)
    else:
        file.write(new.key, checkpoint.read(tensor.key).float())


def _write_config(plain: Path, out: Path) -> None:
    settings = integer_settings(plain)
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for section in (config, config.get("text_config", {})):
        section.pop("quantization_config", None)
    config["quantization"] = {"group_size": settings.group_size, "bits": settings.bits}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
