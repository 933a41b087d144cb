"""The format of mlx-lm, for Apple silicon: written by its own converter, in a process and a Python of its own."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

from qlora_cli import console
from qlora_cli.deploy.engines.engine import Engine
from qlora_cli.deploy.engines.install import engine_version
from qlora_cli.deploy.engines.script_call import SCRIPTS, ask_script, call_script
from qlora_cli.deploy.formats.format import CodesFormat, Format, FormatOptions, WriteJob
from qlora_cli.deploy.formats.mlx_codes import quant_of_codes, write_codes
from qlora_cli.deploy.formats.taken_over import take_over
from qlora_cli.engine_environment import MLX
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tuned import TunedSource
from qlora_cli.progress import progress

QUANTS = ("4bit", "8bit", "3bit", "2bit", "bf16")
GROUP_SIZES = (64, 32)


def check(_: TunedSource, options: FormatOptions) -> None:
    """Refuse a group that MLX does not have."""
    if options.group_size is None:
        return
    if options.quant == "bf16":
        raise ArgumentError(f"--group-size {options.group_size} does not go with bf16", hint="leave it out")
    if options.group_size not in GROUP_SIZES:
        raise ArgumentError(
            f"--group-size {options.group_size} does not go with mlx",
            hint=f"use --group-size {' or '.join(map(str, GROUP_SIZES))}",
        )


def write(job: WriteJob) -> None:
    """Have mlx-lm convert the model; tokenizer, chat template and generation settings stay as they were.

    Raises:
        ResourceError: if mlx-lm is not installed, or does not know the model.
    """
    quant = job.options.quant or QUANTS[0]
    with tempfile.TemporaryDirectory(prefix="qlora-") as temporary, progress("converting with mlx-lm"):
        model = Path(temporary) / "model"  # mlx-lm wants to make the folder
        request = {
            "plain": str(job.plain),
            "out": str(model),
            "bits": None if quant == "bf16" else int(quant.removesuffix("bit")),
            "group_size": job.options.group_size or GROUP_SIZES[0],
        }
        answers = call_script(MLX, SCRIPTS / "mlx_write.py", request, Path(temporary) / "answers")
        lost = json.loads((answers / "written.json").read_text(encoding="utf-8"))["lost"]
        take_over(job, model, keys=("quantization",))
    if lost:
        console.warn(f"mlx-lm keeps no place for {len(lost)} tensors, such as {lost[0]}: they are left out")


ENGINE = Engine("mlx-lm", MLX.install, partial(engine_version, MLX), partial(ask_script, MLX, SCRIPTS / "mlx_ask.py"))
FORMAT = Format(
    write,
    ENGINE,
    MLX,
    QUANTS,
    check=check,
    smallest_first=("2bit", "3bit", "4bit", "8bit", "bf16"),
    larger=("8bit", "bf16"),
    group_sizes=GROUP_SIZES,
    codes=CodesFormat(write_codes, quant_of_codes),
)
