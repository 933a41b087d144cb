"""The adapter alone as GGUF, which llama.cpp adds to its base with `--lora`, and the chat template of training.

llama.cpp multiplies an update by lora_alpha / rank, with one lora_alpha for the whole file. Any other scaling (rsLoRA,
alpha_pattern) goes into lora_alpha, or into the numbers of B.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from qlora_cli import console
from qlora_cli.deploy.engines.llama_cpp import LLAMA_CPP, converter_folder, run_step
from qlora_cli.deploy.formats import gguf
from qlora_cli.deploy.formats.format import Format, FormatOptions, WriteJob
from qlora_cli.deploy.formats.prediction_layers import holds_prediction_layers
from qlora_cli.engine_environment import GGUF
from qlora_cli.errors import ArgumentError
from qlora_cli.model.adapter_kind import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterKind, read_settings
from qlora_cli.model.tuned import TunedSource, load_tokenizer_of

FILE = "adapter.gguf"
TEMPLATE = "chat_template.jinja"
QUANTS = ("f32", "f16")
OF_BASE = "f16"
"""Type of the base that the adapter is opened on where none is handed on."""

UPDATE = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight$")


def check(source: TunedSource, _: FormatOptions) -> None:
    """Refuse an adapter that is more than updates of linear layers.

    Raises:
        ArgumentError: with the reason, and the command that folds it in.
    """
    if source.adapter is None or source.kind is None:
        raise ArgumentError("holds no adapter", place=str(source.folder), hint="name a run or an adapter folder")
    if (reason := reason_against(source.kind, read_settings(source.adapter))) is not None:
        hint = f"fold it into its base: `qlora export {quote(str(source.folder))} --format gguf --out FOLDER`"
        raise ArgumentError(f"llama.cpp cannot add it to a base: {reason}", place=str(source.adapter), hint=hint)


def reason_against(kind: AdapterKind, settings: Mapping[str, Any]) -> str | None:
    """The first thing about an adapter that llama.cpp does not compute, or its converter leaves out, if any."""
    other = next((name for name in kind.shapes if not UPDATE.match(name)), "")
    reasons = (
        (kind.method != "LORA" or kind.variant, f"it is {kind.variant or kind.title}, and llama.cpp adds LoRA alone"),
        (settings.get("use_dora"), "it is DoRA (use_dora)"),
        (kind.changes_base, f"it stands on other weights than the base's own (init_lora_weights: {kind.init})"),
        (kind.lora_bias or settings.get("bias", "none") != "none", "it has biases"),
        (
            kind.modules_to_save or kind.trainable_token_indices,
            "it holds whole modules or rows of embeddings (modules_to_save, trainable_token_indices)",
        ),
        (settings.get("target_parameters"), "it updates parameters of experts (target_parameters)"),
        (other, f"its file holds '{other}', which is no update of a linear layer"),
    )
    return next((text for is_so, text in reasons if is_so), None)


def write(job: WriteJob) -> None:
    """Have llama.cpp's converter write the adapter; the scaling of each layer is that of training.

    Raises:
        ArgumentError: as `check`.
        ResourceError: if llama.cpp is not there, or does not know the model.
    """
    check(job.source, job.options)
    adapter = job.source.adapter
    assert adapter is not None  # `check` has seen it
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=job.out) as temporary:
        scaled = Path(temporary) / "adapter"
        scaled.mkdir()
        write_scaled(adapter, scaled)
        request = {
            "converter": str(converter_folder()),
            "plain": str(job.plain),
            "adapter": str(scaled),
            "out": str(job.out / FILE),
            "type": job.options.quant or QUANTS[0],
            "trust_remote_code": job.source.model.trust_remote_code,
            "predicts": holds_prediction_layers(job.plain),
        }
        run_step("gguf_adapter.py", request, Path(temporary) / "convert")
    template = load_tokenizer_of(job.source).get_chat_template()
    (job.out / TEMPLATE).write_text(str(template), encoding="utf-8")
    _say_how_to_use(job)


def write_scaled(adapter: Path, out: Path) -> None:
    """The adapter with numbers that lora_alpha / rank makes the update of training of."""
    settings, tensors = read_settings(adapter), load_file(adapter / ADAPTER_WEIGHTS)
    alpha = settings["lora_alpha"] * (math.sqrt(settings["r"]) if settings.get("use_rslora") else 1.0)
    for name, tensor in tensors.items():
        match = UPDATE.match(name)
        if match is not None and match["part"] == "B":
            factor = scaling(settings, match["module"], tensor.shape[1]) * tensor.shape[1] / alpha
            tensors[name] = tensor if math.isclose(factor, 1.0) else (tensor.to(torch.float32) * factor)
    save_file(tensors, out / ADAPTER_WEIGHTS)
    (out / ADAPTER_CONFIG).write_text(json.dumps(settings | {"lora_alpha": alpha}), encoding="utf-8")


def scaling(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies the update of a module by: lora_alpha / r, or lora_alpha / sqrt(r) (arXiv:2312.03732).

    >>> scaling({"lora_alpha": 32, "use_rslora": True}, "layers.0.mlp.up_proj", 16)
    8.0
    >>> scaling({"lora_alpha": 32, "alpha_pattern": {"up_proj": 8}}, "layers.0.mlp.up_proj", 16)
    0.5
    """
    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), settings["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def write_base(job: WriteJob) -> None:
    """The base that the adapter is opened on, as `base-TYPE.gguf`."""
    quant = job.options.base_quant or OF_BASE
    gguf.write(replace(job, options=FormatOptions(quant)))
    gguf.file_of(job.out, quant).rename(job.out / base_file(quant))


def base_file(quant: str) -> str:
    """Name of the base's file."""
    return f"base-{quant}.gguf"


def _say_how_to_use(job: WriteJob) -> None:
    base = "BASE.gguf" if job.options.base_quant is None else base_file(job.options.base_quant)
    console.note(f"`llama-server -m {base} --lora {FILE} --jinja --chat-template-file {TEMPLATE}` serves it")
    if job.options.base_quant is None:
        console.note("its base as GGUF comes with --base-quant, as --base-quant q4_k_m; other adapters can share it")


FORMAT = Format(
    write,
    LLAMA_CPP,
    writer=GGUF,
    quants=QUANTS,
    loses_nothing=True,
    check=check,
    write_base=write_base,
    base_quants=gguf.GGUF_FILE.quants,
)
