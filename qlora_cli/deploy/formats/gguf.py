"""GGUF: one file with weights, tokenizer and chat template, for llama.cpp and what is built on it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.engines.llama_cpp import LLAMA_CPP, converter_folder, cut_with_llama_cpp, run_step
from qlora_cli.deploy.formats.format import CodesFormat, Format, WriteJob
from qlora_cli.deploy.formats.importance import write_importance
from qlora_cli.deploy.formats.prediction_layers import holds_prediction_layers
from qlora_cli.deploy.integers import integer_settings
from qlora_cli.deploy.plain_copy import write_plain_copy
from qlora_cli.engine_environment import GGUF
from qlora_cli.errors import ArgumentError

UNROUNDED = ("f32", "f16", "bf16")
"""Types that the converter writes by itself."""

ABOVE_FIVE_BITS = ("q8_0", "q6_k", "q5_k_m")
WITH_IMPORTANCE = ("q4_k_m", "q4_0", "q4_1", "q3_k_m", "q2_k", "iq4_xs", "iq3_xxs", "iq2_xs", "iq2_xxs")
"""Types that the rows of the run help to round; the last three cannot do without."""

SMALLEST_FIRST = (
    *("iq2_xxs", "iq2_xs", "q2_k", "iq3_xxs", "q3_k_m", "iq4_xs", "q4_0", "q4_k_m", "q4_1", "q5_k_m", "q6_k", "q8_0"),
    *("bf16", "f16", "f32"),
)
USUAL = "q4_k_m"
OF_CODES = "q4_1"
"""The type that holds a model in integers of up to 4 bits without rounding it to other codes."""

PROBES = (
    "Hello, world! It's 12:45; they'll pay $1,234.56 (or 10%).\n\n\tdef f(x):\n        return x ** 2  # indented\n",
    "Größe, naïve café, 東京で会いましょう, привет мир, مرحبا, 👩‍🚀🚀  two  spaces   three",
    "a  b\r\nc\u00a0d 3 33 333 3333 I'M WE'LL ------ ==== ...",
)
"""Texts that tell kinds of pre-tokenizers apart, each after a special token, as in a chat."""


def write(job: WriteJob) -> None:
    """Convert, round, and prove that llama.cpp cuts texts as the tokenizer of training does.

    Raises:
        ArgumentError: if the tokenizer is not one that llama.cpp has.
        ResourceError: if llama.cpp is not there, or one of its steps fails.
    """
    quant, trust = job.options.quant or USUAL, job.source.model.trust_remote_code
    file = file_of(job.out, quant)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=job.out) as temporary:
        scratch = Path(temporary)
        is_last = quant in UNROUNDED
        wide = file if is_last else scratch / "wide.gguf"
        request = _convert(job, wide, quant if is_last else "f32", scratch)
        if not is_last:
            importance = ""
            if quant in WITH_IMPORTANCE:
                measured = (job.kept or scratch) / "importance.safetensors"
                if not measured.exists():
                    write_importance(job.plain, job.calibration_rows, measured, trust_code=trust)
                importance = str(measured)
            rounding = request | {"wide": str(wide), "out": str(file), "type": quant, "importance": importance}
            run_step("gguf_quantize.py", rounding, scratch / "quantize")


def file_of(folder: Path, quant: str) -> Path:
    """Where `write` puts a model."""
    return folder / f"model-{quant}.gguf"


def write_codes(job: WriteJob) -> None:
    """Write a merged model in integers: its codes in Q4_1, which has floats for scale and offset of 32 weights.

    llama.cpp's converter does all else, on a copy in float16.

    Raises:
        ArgumentError, ResourceError: as `write`.
    """
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=job.out) as temporary:
        scratch = Path(temporary)
        plain, wide = scratch / "plain", scratch / "wide.gguf"
        write_plain_copy(job.plain, plain, torch.float16, trust_code=job.source.model.trust_remote_code)
        request = _convert(replace(job, plain=plain), wide, "f16", scratch)
        shutil.rmtree(plain)
        request |= {"wide": str(wide), "model": str(job.plain), "bits": integer_settings(job.plain).bits}
        run_step("gguf_codes.py", request | {"out": str(file_of(job.out, OF_CODES))}, scratch / "codes")


def _convert(job: WriteJob, file: Path, type: str, scratch: Path) -> dict[str, Any]:
    """Have llama.cpp's converter write `file`; returns the request, of which other steps need parts."""
    tokenizer = AutoTokenizer.from_pretrained(job.plain, trust_remote_code=job.source.model.trust_remote_code)
    request = {
        "converter": str(converter_folder()),
        "plain": str(job.plain),
        "name": Path(job.source.model.base_model).name,
        "out": str(file),
        "type": type,
        "is_gpt2": cuts_as_gpt2(job.plain),
        "begins": _begins(tokenizer, job.calibration_rows),
        "adds_no_space": adds_no_space(tokenizer),
        "end_of_turn": _end_of_turn(tokenizer),
        "predicts": holds_prediction_layers(job.plain),
    }
    _refuse_unknown_cutter(run_step("gguf_convert.py", request, scratch / "convert"), job.plain)
    refuse_other_tokens(tokenizer, job, file)
    return request


def _begins(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> bool:
    """Whether texts began with the tokenizer's token for that in training: llama.cpp is told to add it, or not to."""
    return all(list(row[:1]) == [tokenizer.bos_token_id] for row in rows)


def adds_no_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text after a special token is cut otherwise than one at the start, which gets a space before it.

    So SentencePiece tokenizers do that are not `legacy`. llama.cpp knows "before every text" and "before none"; chats
    begin with a special token.
    """
    mark = first_mark(tokenizer)
    after = tokenizer(mark + "x", add_special_tokens=False).input_ids[1:]
    return bool(mark) and after != tokenizer("x", add_special_tokens=False).input_ids


def first_mark(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token that a text can come after; empty where the tokenizer has none."""
    return tokenizer.bos_token or next(iter(tokenizer.all_special_tokens), "")


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template ends an answer with, where it is not the end of the sequence."""
    return min(Renderer(tokenizer).end_of_turn_ids - {tokenizer.eos_token_id}, default=None)


def cuts_as_gpt2(folder: Path) -> bool:
    """Whether a tokenizer.json cuts texts as GPT-2's does: byte level with its regular expression, and nothing else."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return False
    content = json.loads(path.read_text(encoding="utf-8"))
    cutter = content.get("pre_tokenizer") or {}
    is_byte_level = cutter.get("type") == "ByteLevel" and cutter.get("use_regex", True)
    return bool(is_byte_level and not cutter.get("add_prefix_space") and content.get("normalizer") is None)


def _refuse_unknown_cutter(answers: Path, plain: Path) -> None:
    """Refuse a BPE tokenizer that llama.cpp has no rule for: a guess would give the model other tokens.

    Raises:
        ArgumentError: with the hash that llama.cpp's converter looks for.
    """
    unknown = answers / "unknown.txt"
    if unknown.is_file():
        raise ArgumentError(
            f"llama.cpp does not know how this tokenizer cuts texts (hash {unknown.read_text(encoding='utf-8')})",
            place=str(plain / "tokenizer.json"),
            hint="use --format hf; a later llama.cpp may know the hash: QLORA_LLAMA_CPP=FOLDER names a checkout of it",
        )


def refuse_other_tokens(tokenizer: PreTrainedTokenizerBase, job: WriteJob, file: Path) -> None:
    """Refuse a GGUF file whose tokenizer makes other tokens of the run's texts than training saw.

    Raises:
        ArgumentError: with the text.
    """
    texts = [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in job.calibration_rows]
    texts += [first_mark(tokenizer) + probe for probe in PROBES]
    for text, mine in zip(texts, cut_with_llama_cpp(file, texts), strict=True):
        trained = tokenizer(text, add_special_tokens=False).input_ids
        if mine != trained:
            start = next((i for i, pair in enumerate(zip(mine, trained, strict=False)) if pair[0] != pair[1]), 0)
            raise ArgumentError(
                f"llama.cpp cuts {text[:40]!r} into {len(mine)} tokens and training into {len(trained)}, "
                f"the first other one at position {start}",
                place=str(job.plain / "tokenizer.json"),
                hint="use --format hf: llama.cpp would see other tokens than the model was trained on",
            )


OF_INTEGERS = CodesFormat(write_codes, lambda bits: OF_CODES, GGUF)
GGUF_FILE = Format(
    write,
    LLAMA_CPP,
    writer=GGUF,
    quants=(USUAL, *(name for name in (*UNROUNDED, *ABOVE_FIVE_BITS, *WITH_IMPORTANCE) if name != USUAL)),
    smallest_first=SMALLEST_FIRST,
    larger=("q5_k_m", "q6_k", "q8_0", "f16"),
    codes=OF_INTEGERS,
)
