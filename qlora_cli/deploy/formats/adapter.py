"""The adapter alone, as PEFT writes it and vLLM takes it: weights, configuration, tokenizer, chat template.

Files of training stay behind. What vLLM cannot serve is refused with the way on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from qlora_cli import console
from qlora_cli.deploy.engines.engine import Answers, Engine, Questions
from qlora_cli.deploy.engines.install import engine_version
from qlora_cli.deploy.engines.script_call import SCRIPTS, ask_script
from qlora_cli.deploy.formats.format import Format, FormatOptions, WriteJob
from qlora_cli.engine_environment import COMPRESSED_TENSORS, OwnEnvironment
from qlora_cli.errors import ArgumentError, Problem, ResourceError
from qlora_cli.model.adapter_kind import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qlora_cli.model.adapter_record import ADAPTER_RECORD, read_adapter_record
from qlora_cli.model.device import dtype_name, pick_device, pick_dtype
from qlora_cli.model.tuned import TunedSource, load_tokenizer_of
from qlora_cli.model.vllm_limits import vllm_rank, vllm_refusals
from qlora_cli.recipe.schema import QuantizationSection
from qlora_cli.run.files import write_json

PEFT = OwnEnvironment("peft", "peft", ())


def check(source: TunedSource, _: FormatOptions) -> None:
    """Refuse an adapter that vLLM would refuse or answer wrongly with.

    Raises:
        ArgumentError: with every reason, and a command that leads to a model that can be served.
    """
    if source.adapter is None:
        raise ArgumentError("holds no adapter", place=str(source.folder), hint="name a run or an adapter folder")
    if not (source.adapter / ADAPTER_WEIGHTS).is_file():
        raise ArgumentError(
            f"has no {ADAPTER_WEIGHTS}, and pickles are not handed on",
            place=str(source.adapter),
            hint=f"fold it into its base: `qlora merge {quote(str(source.folder))} --out FOLDER`",
        )
    refusals = vllm_refusals(source.adapter)
    if refusals:
        place = str(source.adapter)
        raise ArgumentError([Problem(f"vLLM cannot serve it: {each.text}", place, each.way_on) for each in refusals])
    if source.quantization is not None and source.quantization.method == "int":
        run = quote(str(source.folder))
        raise ArgumentError(
            f"its base is stored in {source.quantization.kind}, in a layout of ours that PEFT and vLLM do not open",
            place=str(source.adapter),
            hint=f"`qlora serve {run} --engine vllm` serves it on that base written out; or fold it in: `qlora merge "
            f"{run} --out FOLDER`",
        )


def write(job: WriteJob) -> None:
    """Write the adapter; its tensors are byte for byte those of training.

    Raises:
        ArgumentError: as `check`.
    """
    check(job.source, job.options)
    adapter = job.source.adapter
    assert adapter is not None  # `check` has seen it
    shutil.copyfile(adapter / ADAPTER_WEIGHTS, job.out / ADAPTER_WEIGHTS)
    settings = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    model = job.source.model
    settings |= {"base_model_name_or_path": model.base_model, "revision": model.revision, "inference_mode": True}
    (job.out / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    load_tokenizer_of(job.source).save_pretrained(job.out)
    if (adapter / ADAPTER_RECORD).is_file():  # the base's quantization and fingerprints
        shutil.copyfile(adapter / ADAPTER_RECORD, job.out / ADAPTER_RECORD)
    elif job.source.quantization is not None:
        write_json(
            job.out / ADAPTER_RECORD,
            {
                "model": model.model_dump(mode="json"),
                "quantization": job.source.quantization.model_dump(mode="json"),
                "residual": None,
                "integers": None,
                "fingerprints": dict(job.source.fingerprints),
            },
        )
    _say_how_to_serve(job.source, adapter)


def _say_how_to_serve(source: TunedSource, adapter: Path) -> None:
    base = quote(source.model.base_model)
    if source.quantization is not None and not source.quantization.is_served_as_stored:
        run = quote(str(source.folder))
        console.note(f"the base that training saw, dequantized: `qlora merge {run} --base-only --out BASE`")
        base = "BASE"
    rank = vllm_rank([adapter])
    console.note(f"`vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules NAME=FOLDER` serves it")


def ask(folder: Path, questions: Questions) -> Answers:
    """Plain PEFT opens the folder on its base, stored as in training, in a process of its own."""
    record = read_adapter_record(folder)
    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    loading: dict[str, Any] = {"revision": settings.get("revision"), "dtype": "float32"}
    base: Mapping[str, Any] = {"base": settings["base_model_name_or_path"]}
    if record is not None:
        dtype = dtype_name(pick_dtype(record.model.dtype, pick_device()))
        loading["dtype"] = dtype
        base = {"base": record.model.base_model, "trust_remote_code": record.model.trust_remote_code}
        if record.quantization is not None and record.quantization.is_served_as_stored:
            _require_compressed_tensors(record.model.base_model)
        elif record.quantization is not None:
            loading["quantization"] = _as_loaded(record.quantization, dtype)
    return ask_script(PEFT, SCRIPTS / "transformers_ask.py", folder, questions, {**base, "loading": loading})


def _require_compressed_tensors(base_model: str) -> None:
    if COMPRESSED_TENSORS.python is None:
        raise ResourceError(
            f"PEFT cannot open the adapter: its base '{base_model}' is stored in W4A16, and the package that reads it "
            "is missing",
            hint=COMPRESSED_TENSORS.install,
        )


def _as_loaded(quantization: QuantizationSection, dtype: str) -> dict[str, Any]:
    """Arguments of `BitsAndBytesConfig`."""
    if quantization.quant_type == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quantization.quant_type,
        "bnb_4bit_use_double_quant": quantization.double_quant is not False,
        "bnb_4bit_compute_dtype": dtype,
    }


ENGINE = Engine("PEFT", PEFT.install, partial(engine_version, PEFT), ask)
FORMAT = Format(write, ENGINE, loses_nothing=True, check=check)
