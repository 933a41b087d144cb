"""Formats of `qlora export`.

To add one: a module that makes a `Format`, and a line in FORMATS; CONTRIBUTING.md names the other files.
"""

from __future__ import annotations

from qlora_cli.deploy.formats import adapter, awq, bitsandbytes, compressed_tensors, gguf_adapter, gptq, mlx, ollama
from qlora_cli.deploy.formats.format import Format
from qlora_cli.deploy.formats.gguf import GGUF_FILE
from qlora_cli.deploy.formats.hugging_face import HUGGING_FACE

FORMATS: dict[str, Format] = {
    "hf": HUGGING_FACE,
    "gguf": GGUF_FILE,
    "ollama": ollama.FORMAT,
    "compressed-tensors": compressed_tensors.FORMAT,
    "gptq": gptq.FORMAT,
    "bnb": bitsandbytes.FORMAT,
    "mlx": mlx.FORMAT,
    "adapter": adapter.FORMAT,
    "gguf-adapter": gguf_adapter.FORMAT,
    "awq": awq.FORMAT,
}
