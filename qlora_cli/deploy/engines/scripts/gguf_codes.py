"""In llama.cpp's environment: `python gguf_codes.py REQUEST.json` puts integers into a GGUF file of float16 weights.

Each layer that training kept in integers becomes Q4_1, w = d * code + m with d and m of 32 weights, made of its own
codes. llama.cpp's converter orders rows in its own way; a row is found by its float16 values. Nothing of this project
is imported.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

BLOCK = 32
"""Weights of a Q4_1 block."""


class Layers:
    """The layers of a model folder that are stored in integers."""

    def __init__(self, folder: Path, bits: int) -> None:
        self._bits = bits
        self._files: dict[str, Any] = {}
        for path in folder.glob("model*.safetensors"):
            file = safe_open(path, framework="numpy").__enter__()
            self._files |= dict.fromkeys(file.keys(), file)
        self.names = [name.removesuffix(".codes") for name in self._files if name.endswith(".codes")]

    def _read(self, name: str) -> np.ndarray:
        return self._files[name].get_tensor(name)

    def parts(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes [O, I] of a layer, scales and offsets [O, G] in float32."""
        packed = self._read(f"{name}.codes")
        places = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), -1, self._bits)
        codes = np.packbits(places, axis=2, bitorder="little")[..., 0]
        return codes, self._read(f"{name}.scales").astype(np.float32), self._read(f"{name}.offsets").astype(np.float32)


def weights(codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The weight, float16 [O, I]."""
    grouped = codes.reshape(*scales.shape, -1).astype(np.float32)
    return (grouped * scales[..., None] + offsets[..., None]).astype(np.float16).reshape(codes.shape)


def order_of_rows(stored: np.ndarray, expected: np.ndarray) -> list[int] | None:
    """For each row of `stored` the row of `expected` with the same values; None if one has none."""
    places: dict[bytes, list[int]] = {}
    for index, row in enumerate(expected):
        places.setdefault(row.tobytes(), []).append(index)
    try:
        return [places[row.tobytes()].pop(0) for row in stored]
    except (KeyError, IndexError):
        return None


def blocks(codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Q4_1 as ggml lays it out, bytes [O, I / 32 * 20]: d, m, and code i beside code i + 16 in a byte."""
    num_rows = len(codes)
    repeats = codes.shape[1] // scales.shape[1] // BLOCK
    constants = [
        np.repeat(values, repeats, axis=1).astype(np.float16).view(np.uint8).reshape(num_rows, -1, 2)
        for values in (scales, offsets)
    ]
    low, high = np.split(codes.reshape(num_rows, -1, BLOCK), 2, axis=2)
    return np.concatenate([*constants, low | (high << 4)], axis=2).reshape(num_rows, -1)


class Converted:
    """The converter's file, and which of its tensors are layers in integers."""

    def __init__(self, gguf: Any, path: str, layers: Layers, config: dict[str, Any]) -> None:
        self.reader = gguf.GGUFReader(path)
        self.layers = layers
        self.arch = self.reader.get_field("general.architecture").contents()
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        names = gguf.get_tensor_name_map(kinds[self.arch], config["num_hidden_layers"])
        self.layer_of = {names.get_name(f"{name}.weight", (".weight",)): name for name in layers.names}
        missing = set(self.layer_of) - {tensor.name for tensor in self.reader.tensors}
        if missing or len(self.layer_of) != len(layers.names):
            sys.exit(f"error: llama.cpp's converter stores {len(missing)} layers under another name or in one tensor")

    def blocks_of(self, tensor: Any) -> np.ndarray:
        """A layer in Q4_1, its rows in llama.cpp's order."""
        codes, scales, offsets = self.layers.parts(self.layer_of[tensor.name])
        order = order_of_rows(tensor.data, weights(codes, scales, offsets))
        if order is None:
            sys.exit(f"error: llama.cpp's converter changes the numbers of {tensor.name}, so its codes cannot be kept")
        return blocks(codes[order], scales[order], offsets[order])


def write(gguf: Any, converted: Converted, out: str) -> None:
    """The same file, its layers in Q4_1; one tensor is in memory at a time."""
    writer, kind = gguf.GGUFWriter(out, converted.arch), gguf.GGMLQuantizationType.Q4_1
    for field in converted.reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            is_list = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if is_list else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    for tensor in converted.reader.tensors:
        if tensor.name in converted.layer_of:
            shape = gguf.quant_shape_to_byte_shape(tensor.data.shape, kind)
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), kind)
        else:
            data = tensor.data
            writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in converted.reader.tensors:
        is_layer = tensor.name in converted.layer_of
        writer.write_tensor_data(converted.blocks_of(tensor) if is_layer else tensor.data)
    writer.close()


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.insert(0, str(Path(request["converter"]) / "gguf-py"))
    import gguf

    folder = Path(request["model"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers = Layers(folder, request["bits"])
    write(gguf, Converted(gguf, request["wide"], layers, config.get("text_config") or config), request["out"])


if __name__ == "__main__":
    main()
