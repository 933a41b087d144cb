"""Words of which one is chosen, in a recipe or on the command line, and which a package above acts on.

They are below all packages because recipe and command line check them without the libraries that act on them. Each
word has its entry in one dict of its package; `tests/test_choices.py` holds words and dicts together.
"""

from __future__ import annotations

from typing import Literal

ExchangeFormat = Literal["alpaca", "messages", "sharegpt", "prompt_completion"]
"""Layouts of a row that holds a prompt and its answer; FORMATS in `data/read/converters.py`."""

DataFormat = Literal[ExchangeFormat, "text"]
"""Layouts of a row; FORMATS in `data/read/converters.py`."""

MetricName = Literal[
    "exact_match", "number_match", "contains", "regex", "choice", "json_valid", "rouge_l", "bleu", "chrf"
]
"""Scores of an answer; METRICS in `evaluate/metrics/table.py`."""

Ignored = Literal["case", "punctuation", "white_space"]
"""What the comparison of two texts may leave out; `normalized` in `evaluate/metrics/text.py`."""

TaskKind = Literal["generation", "multiple_choice"]
"""How a task is answered; KINDS in `evaluate/tasks/load.py`."""

ExportFormat = Literal[
    "hf", "gguf", "ollama", "compressed-tensors", "gptq", "bnb", "mlx", "adapter", "gguf-adapter", "awq"
]
"""Formats that `qlora export` writes; FORMATS in `deploy/formats/table.py`."""

EXPORT_FORMATS: dict[ExportFormat, str] = {
    "hf": "a folder that plain `transformers` loads",
    "gguf": "one file for llama.cpp",
    "ollama": "the same with a Modelfile",
    "compressed-tensors": "4 or 8 bits for vLLM",
    "gptq": "4 or 8 bits, rounded by the run's rows",
    "bnb": "4 or 8 bits for `transformers` only",
    "mlx": "2 to 16 bits for Apple silicon",
    "adapter": "a PEFT folder that vLLM takes",
    "gguf-adapter": "the adapter alone for llama.cpp",
    "awq": "refused, with what has taken its place",
}
"""Export format -> what it is, for the help of the command."""

Onto = Literal["dequantized", "original", "auto"]
"""Base of a merge: the weights that training saw, the base before quantization, or the one with the lower loss."""

MergedDtype = Literal["auto", "bfloat16", "float32"]
"""Precision of merged weights; auto keeps that of each tensor of the base."""

LoadedAs = Literal["none", "nf4", "fp4", "int8"]
"""Storage of the base under a finished adapter: unquantized, or a `quant_type` of the recipe."""

RunOrder = Literal["latest", "name", "eval", "loss", "steps", "time"]
"""Orders of `qlora runs`; ORDERS in `run/overview.py`."""

ServingEngine = Literal["transformers", "vllm"]
"""What computes the answers of `qlora serve`: this process, or vLLM in an environment of its own."""
