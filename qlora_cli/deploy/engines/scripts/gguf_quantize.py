"""In llama.cpp's environment: `python gguf_quantize.py REQUEST.json` gives the weights of a GGUF file fewer bits.

The importance of input columns comes as a safetensors file under the names of Hugging Face's modules.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from safetensors.numpy import load_file


def importance_by_tensor(path: str, converter: str, plain: str, arch: str) -> dict[str, Any]:
    """Mean square of each input column, by the name of the tensor in the GGUF file."""
    sys.path.insert(0, str(Path(converter) / "gguf-py"))
    import gguf

    config = json.loads((Path(plain) / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config") or config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[arch], config["num_hidden_layers"])
    found = {}
    for module, values in load_file(path).items():
        name = names.get_name(module, try_suffixes=(".weight",)) or names.get_name(f"{module}.weight", (".weight",))
        if name is not None:
            found[name if name.endswith(".weight") else f"{name}.weight"] = np.ascontiguousarray(values, np.float32)
    return found


def architecture(path: str, converter: str) -> str:
    sys.path.insert(0, str(Path(converter) / "gguf-py"))
    import gguf

    return gguf.GGUFReader(path).get_field("general.architecture").contents()


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{request['type'].upper()}")
    entries = {}
    if request["importance"]:
        arch = architecture(request["wide"], request["converter"])
        entries = importance_by_tensor(request["importance"], request["converter"], request["plain"], arch)
        if not entries:
            sys.exit(f"error: no tensor of architecture {arch} is known by the name of its layer")
        table = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
        for index, (name, values) in enumerate(entries.items()):
            table[index].name = name.encode()
            table[index].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            table[index].size = values.size
        table[len(entries)].name = None
        parameters.imatrix = table
    code = llama_cpp.llama_model_quantize(request["wide"].encode(), request["out"].encode(), ctypes.byref(parameters))
    if code != 0:
        sys.exit(f"error: llama_model_quantize ended with {code}")
    print(f"{len(entries)} tensors with an importance")


if __name__ == "__main__":
    main()
