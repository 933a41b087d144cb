"""Models of `qalora.py`: trained once a seed, deployed in several ways, each measured on the same held-out rows.

Shape letters: T = trained tokens of a row, V = vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from qlora_cli.api import train
from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.renderer import Renderer, TokenRow
from qlora_cli.deploy.engines.engine import Questions
from qlora_cli.deploy.engines.llama_cpp import LLAMA_CPP
from qlora_cli.deploy.engines.script_call import SCRIPTS, ask_script
from qlora_cli.deploy.export_reference import NUM_CALIBRATION_ROWS
from qlora_cli.deploy.formats.format import FormatOptions, WriteJob
from qlora_cli.deploy.formats.gguf import write as write_gguf
from qlora_cli.deploy.integers import stored_folder
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.engine_environment import GGUF
from qlora_cli.model.base import read_config
from qlora_cli.model.integer.calibrated import write_calibrated_base
from qlora_cli.model.integer.layers import layers_to_round
from qlora_cli.model.tuned import TunedSource, find_tuned, load_tokenizer_of, load_tuned
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.schema import ModelSection, QuantizationSection

BITS = (4, 3, 2)
NF4_BITS = 4.127
"""Of a weight, with double quantization (arXiv:2305.14314, section 3)."""

Record = dict[str, Any]
LogitsOf = Callable[[list[TokenRow]], Iterator[torch.Tensor]]
"""Gives the logits [T, V] that predict the trained tokens of each row."""


@dataclass(frozen=True)
class Setting:
    """What all models of a benchmark have in common."""

    base: Path
    train: Path
    test: Path
    columns: dict[str, str]
    r: int
    group_size: int
    steps: int
    rows_per_step: int
    max_length: int
    test_rows: int
    choice_rows: int

    def model(self, folder: Path) -> ModelSection:
        """A model folder, computing in float32."""
        return ModelSection(base_model=str(folder), dtype="float32")

    def integers(self, bits: int) -> QuantizationSection:
        """Rounded to the nearest of so many bits."""
        return QuantizationSection(method="int", bits=bits, group_size=self.group_size)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Arm:
    """One training, and what is made of it."""

    name: str
    init: str
    bits: int | None
    """Of a QA-LoRA base; None for QLoRA on NF4."""

    calibration: str = "none"
    """Of a QA-LoRA base: rounded to the nearest, or by GPTQ on the run's rows."""

    learning_rate: float = 0.0


def linear_shapes(setting: Setting) -> list[tuple[int, int]]:
    """Inputs and outputs of each layer that is quantized and has an adapter."""
    model = setting.model(setting.base)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(read_config(model))
    choice = layers_to_round(model, setting.integers(4), read_config(model))
    layers = [skeleton.get_submodule(name) for name in choice.rounded]
    return [(layer.in_features, layer.out_features) for layer in layers]


def ranks(setting: Setting) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rank and trained parameters of LoRA, and of the QA-LoRA whose number is nearest: its A is [r, inputs / group]."""
    shapes = linear_shapes(setting)
    of_lora = sum(inputs + outputs for inputs, outputs in shapes)
    of_groups = sum(inputs // setting.group_size + outputs for inputs, outputs in shapes)
    r = round(setting.r * of_lora / of_groups)
    return (setting.r, setting.r * of_lora), (r, r * of_groups)


def recipe(setting: Setting, arm: Arm, seed: int) -> Record:
    """The recipe of a training."""
    (r, _), (grouped, _) = ranks(setting)
    lora: Record = {"r": r if arm.bits is None else grouped, "lora_dropout": 0.0, "init_lora_weights": arm.init}
    lora["lora_alpha"] = 2 * lora["r"]
    quantization: Record = {"quant_type": "nf4"}
    if arm.bits is not None:
        lora["use_qalora"] = True
        quantization = {"method": "int", "bits": arm.bits, "group_size": setting.group_size}
        quantization["calibration"] = arm.calibration
    return {
        "name": "qalora",
        "model": {"base_model": str(setting.base), "dtype": "float32"},
        "quantization": quantization,
        "lora": lora,
        "data": {
            "train": {"path": str(setting.train), "columns": setting.columns},
            "max_length": setting.max_length,
            "packing": True,
        },
        "training": {
            "max_steps": setting.steps,
            "per_device_train_batch_size": 1,  # small tensors stay in the caches of a CPU
            "gradient_accumulation_steps": setting.rows_per_step,
            "gradient_checkpointing": False,
            "learning_rate": arm.learning_rate,
            "save_strategy": "no",
            "seed": seed,
        },
    }


def base_records(setting: Setting) -> Iterator[Record]:
    """The base as it is, in NF4 and rounded; KL is to the base as it is."""
    plain = TunedSource(setting.base, setting.model(setting.base))
    reference: list[torch.Tensor] = []
    rows = held_out(setting)[: setting.test_rows]
    sources = {"base, 16 bit": plain, "base, NF4": _with(plain, QuantizationSection())}
    sources |= {f"base, INT{bits}": _with(plain, setting.integers(bits)) for bits in BITS}
    for name, source in sources.items():
        record = measured(rows, of_source(source), reference)
        yield record | {"model": name, "megabytes": _megabytes_of(setting, source)}


def choice_record(setting: Setting, arm: Arm, seed: int, folder: Path) -> Record:
    """The trained model on the rows that the learning rate is chosen by."""
    train(recipe(setting, arm, seed), run_dir=folder / "run", overwrite=True)
    rows = held_out(setting)[setting.test_rows :]
    return measured(rows, of_source(find_tuned(folder / "run")), [])


def trained_records(setting: Setting, arm: Arm, seed: int, folder: Path) -> Iterator[Record]:
    """Train, and measure the model as it was trained and as it is deployed."""
    started = time.process_time()
    run, rows = folder / "run", held_out(setting)[: setting.test_rows]
    train(recipe(setting, arm, seed), run_dir=run, overwrite=True)
    seconds = time.process_time() - started
    source = find_tuned(run)
    assert source.adapter is not None
    adapter_bytes = _num_bytes(source.adapter)
    reference: list[torch.Tensor] = []
    record = measured(rows, of_source(source), reference) | {"cpu_seconds": seconds}
    megabytes = _megabytes_of(setting, source) + adapter_bytes / 1e6
    yield record | {"model": f"{arm.name} + adapter", "megabytes": megabytes, "trained": _num_parameters(source)}
    merged = folder / "merged"
    merge_run(source, merged, MergeOptions(force=True))
    plain = TunedSource(merged, setting.model(merged))
    if arm.bits is not None:
        record = measured(rows, of_source(plain), reference)
        yield record | {"model": f"{arm.name}, merged", "megabytes": _num_bytes(merged) / 1e6}
        return
    record = measured(rows, of_source(plain), reference)
    yield record | {"model": f"{arm.name}, merged, 16 bit", "megabytes": _num_bytes(merged) / 1e6}
    deployed = ((f"INT{bits}", _with(plain, setting.integers(bits))) for bits in BITS)
    for name, rounded in chain(deployed, _by_gptq(setting, merged, folder)):
        record = measured(rows, of_source(rounded), reference)
        yield record | {"model": f"{arm.name}, merged, {name}", "megabytes": _megabytes_of(setting, rounded)}
    if LLAMA_CPP.version() is not None:
        out = folder / "gguf"
        record = measured(rows, _q4_k_m(setting, source, merged, out), reference)
        yield record | {"model": f"{arm.name}, merged, Q4_K_M", "megabytes": _num_bytes(out) / 1e6}


def _by_gptq(setting: Setting, merged: Path, folder: Path) -> Iterator[tuple[str, TunedSource]]:
    """The merged model rounded on rows of the training file."""
    batches = [{"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])} for ids in _calibration(setting)]
    for bits in BITS:
        out = folder / f"gptq-{bits}"
        calibrated = setting.integers(bits).model_copy(update={"calibration": "rows"})
        write_calibrated_base(setting.model(merged), calibrated, batches, out)
        yield f"INT{bits} by GPTQ", TunedSource(out, setting.model(out))


def measured(rows: list[TokenRow], logits_of: LogitsOf, reference: list[torch.Tensor]) -> Record:
    """Of each held-out row its loss in nats, its tokens and how many of them are the most likely ones; mean KL.

    Args:
        rows: held-out ones.
        logits_of: of the model.
        reference: logits of the model that KL is measured from; filled where it is empty.
    """
    is_reference = not reference
    nats, right, tokens, kl = [], [], [], 0.0
    for index, logits_TV in enumerate(logits_of(rows)):
        labels_T = torch.tensor([label for label in rows[index].labels[1:] if label != IGNORE_INDEX])
        logits_TV = logits_TV.float()
        nats.append(cross_entropy(logits_TV, labels_T, reduction="sum").item())
        right.append(int((logits_TV.argmax(-1) == labels_T).sum()))
        tokens.append(len(labels_T))
        if is_reference:
            reference.append(logits_TV.log_softmax(-1))
        log_p_TV = reference[index]
        kl += (log_p_TV.exp() * (log_p_TV - logits_TV.log_softmax(-1))).sum().item()
    return {"nats": nats, "right": right, "tokens": tokens, "kl": kl / sum(tokens)}


def held_out(setting: Setting) -> list[TokenRow]:
    """The first rows of the test file, in the base's tokens: those of the tables, then those of the choice."""
    source = SourceSection(path=str(setting.test), columns=setting.columns)
    return Renderer(_tokenizer(setting)).render(read_examples(source, setting.test_rows + setting.choice_rows))


def _calibration(setting: Setting) -> list[list[int]]:
    """Rows that rounding is fitted to: as many as an export takes."""
    source = SourceSection(path=str(setting.train), columns=setting.columns)
    rows = Renderer(_tokenizer(setting)).render(read_examples(source, NUM_CALIBRATION_ROWS))
    return [list(row.input_ids) for row in rows]


def _tokenizer(setting: Setting) -> Any:
    return load_tokenizer_of(TunedSource(setting.base, setting.model(setting.base)))


def of_source(source: TunedSource) -> LogitsOf:
    @torch.no_grad()
    def logits_of(rows: list[TokenRow]) -> Iterator[torch.Tensor]:
        model = load_tuned(source).model
        for row in rows:
            logits_LV = model(input_ids=torch.tensor([list(row.input_ids)]), use_cache=False).logits[0]
            yield logits_LV[_predicting(row)]

    return logits_of


def _predicting(row: TokenRow) -> list[int]:
    """Positions whose next token is trained."""
    return [index for index, label in enumerate(row.labels[1:]) if label != IGNORE_INDEX]


def _q4_k_m(setting: Setting, source: TunedSource, merged: Path, out: Path) -> LogitsOf:
    """As `qlora export --format gguf --quant q4_k_m` writes it; llama.cpp computes the logits."""
    out.mkdir(exist_ok=True)
    write_gguf(WriteJob(merged, out, source, _calibration(setting), FormatOptions("q4_k_m")))

    def logits_of(rows: list[TokenRow]) -> Iterator[torch.Tensor]:
        ids = [list(row.input_ids) for row in rows]
        questions = Questions(ids, [], frozenset(), max_new_tokens=1)
        longest = {"num_last": max(map(len, ids))}
        answers = ask_script(GGUF, SCRIPTS / "gguf_ask.py", out, questions, longest)
        for row, logits_LV in zip(rows, answers.logits, strict=True):
            yield logits_LV[_predicting(row)]

    return logits_of


def _with(source: TunedSource, quantization: QuantizationSection) -> TunedSource:
    return TunedSource(source.folder, source.model, quantization)


def _megabytes_of(setting: Setting, source: TunedSource) -> float:
    """Weights as they are stored; NF4 by its bits, since bitsandbytes rounds while it loads."""
    if source.quantization is not None and source.quantization.method == "bitsandbytes":
        num_rounded = sum(inputs * outputs for inputs, outputs in linear_shapes(setting))
        return (_num_bytes(setting.base) + num_rounded * (NF4_BITS / 8 - 2)) / 1e6
    return _num_bytes(stored_folder(source)) / 1e6


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf"))


def _num_parameters(source: TunedSource) -> int:
    assert source.adapter is not None
    with safe_open(source.adapter / "adapter_model.safetensors", framework="pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - no mapping
