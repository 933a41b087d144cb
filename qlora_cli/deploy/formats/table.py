"""Formats of `qlora export`.

To add one: a module that makes a `Format`, and a line in FORMATS; CONTRIBUTING.md names the other files.
"""

from __future__ import annotations

from qlora_cli.deploy.formats.format import Format
from qlora_cli.deploy.formats.gguf import GGUF_FILE
from qlora_cli.deploy.formats.hugging_face import HUGGING_FACE

FORMATS: dict[str, Format] = {
    "hf": HUGGING_FACE,
    "gguf": GGUF_FILE,
}
