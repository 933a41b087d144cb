"""Run by a Python that has mlx-lm: a model folder in the form of MLX. `python mlx_write.py REQUEST.json`.

mlx-lm's own converter does the work. Nothing of this project is imported.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm import convert, load


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    bits = request["bits"]
    rounded = {"quantize": True, "q_bits": bits, "q_group_size": request["group_size"]}
    convert(request["plain"], request["out"], **(rounded if bits else {"dtype": "bfloat16"}))
    model, _ = load(request["out"])
    parts = ("weight", "scales", "biases")
    names = {
        name.rpartition(".")[0] for name, _ in tree_flatten(model.parameters()) if name.rpartition(".")[2] in parts
    }
    stored = {key for file in Path(request["plain"]).glob("*.safetensors") for key in mx.load(str(file))}
    lost = sorted(key for key in stored if key.endswith(".weight") and key.removesuffix(".weight") not in names)
    with open(f"{request['answers']}/written.json", "w", encoding="utf-8") as file:
        json.dump({"lost": lost}, file)


if __name__ == "__main__":
    main(sys.argv[1])
