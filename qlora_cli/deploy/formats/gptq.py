"""GPTQ (Frantar et al. 2022, arXiv:2210.17323) by GPTQModel, in a Python of its own: rounding errors are carried on to
the weights of a layer that come later, by what the rows of training do to it."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from qlora_cli.deploy.engines.engine import Engine
from qlora_cli.deploy.engines.install import engine_version
from qlora_cli.deploy.engines.script_call import SCRIPTS, ask_script, call_script
from qlora_cli.deploy.formats.format import Format, FormatOptions, WriteJob
from qlora_cli.deploy.formats.taken_over import take_over
from qlora_cli.engine_environment import GPTQ
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tuned import TunedSource
from qlora_cli.progress import progress

BITS = {"w4a16": 4, "w8a16": 8}
GROUP_SIZES = (128, 64, 32)


def check(_: TunedSource, options: FormatOptions) -> None:
    """Refuse a group that engines have no kernel for."""
    if options.group_size is not None and options.group_size not in GROUP_SIZES:
        raise ArgumentError(
            f"--group-size {options.group_size} does not go with gptq",
            hint=f"use --group-size {', '.join(map(str, GROUP_SIZES[:-1]))} or {GROUP_SIZES[-1]}",
        )


def write(job: WriteJob) -> None:
    """Have GPTQModel quantize the model with the rows of training, in the order of the columns (no act-order).

    Raises:
        ResourceError: if GPTQModel is not installed, or cannot quantize the model.
    """
    with tempfile.TemporaryDirectory(prefix="qlora-") as temporary, progress("quantizing with GPTQModel"):
        model = Path(temporary) / "model"
        request = {
            "plain": str(job.plain),
            "out": str(model),
            "bits": BITS[job.options.quant or "w4a16"],
            "group_size": job.options.group_size or GROUP_SIZES[0],
            "rows": [list(row) for row in job.calibration_rows],
            "trust_remote_code": job.source.model.trust_remote_code,
        }
        call_script(GPTQ, SCRIPTS / "gptq_write.py", request, Path(temporary) / "answers")
        take_over(job, model, ("quantize_config.json",))


ENGINE = Engine(
    "transformers with GPTQModel",
    GPTQ.install,
    partial(engine_version, GPTQ),
    partial(ask_script, GPTQ, SCRIPTS / "transformers_ask.py"),
)
FORMAT = Format(
    write,
    ENGINE,
    GPTQ,
    tuple(BITS),
    check=check,
    smallest_first=("w4a16", "w8a16"),
    larger=("w8a16",),
    group_sizes=GROUP_SIZES,
)
