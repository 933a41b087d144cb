"""Speed and memory of QLoRA training at the shape of an 8B model, on the road that `qlora train` takes.

The base has random weights: speed and memory depend on shapes alone. It is written to disk as a 16-bit checkpoint and
read back through `load_base`, because that is where the 4-bit weights of a real run come from: what stays in 16 bit,
what is quantized and how high memory rises while loading are then measured, not assumed. The price is 16 GB of disk
for the time of the run.

Rows hold random letters; each has the full length and is packed from several documents, as in real data, so that
attention pays for keeping them apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_cli.recipe.schema import Recipe
    from qlora_cli.train.trainer import QloraTrainer

NUM_WARM_UP_STEPS = 5
LARGEST_CPU_HIDDEN = 512
TOY_SIZE = "--hidden 128 --intermediate 256 --layers 2 --heads 4 --kv-heads 2 --vocab 1024 --max-length 128 --steps 8"
VERSIONS = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


def read_options() -> argparse.Namespace:
    """The command line; the defaults are the figures that benchmarks/README.md lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"hidden": 4096, "intermediate": 14_336, "layers": 32, "heads": 32, "kv-heads": 8, "vocab": 128_256}
    sizes |= {"r": 16, "batch-size": 4, "max-length": 2048, "documents-per-row": 4, "steps": 30}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--attention", default="sdpa", help="model.attn_implementation; default sdpa")
    parser.add_argument("--optim", default="paged_adamw_8bit", help="training.optim; default paged_adamw_8bit")
    parser.add_argument("--no-gradient-checkpointing", action="store_true", help="keep activations: faster, larger")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is for trying the script out")
    parser.add_argument("--workdir", type=Path, help="folder for the random base; the system's temporary one if unset")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    if options.steps <= NUM_WARM_UP_STEPS:
        parser.error(f"--steps must be above {NUM_WARM_UP_STEPS}, the steps of the warm-up")
    if options.device == "cpu" and options.hidden > LARGEST_CPU_HIDDEN:
        parser.error(f"on CPU only toy sizes run, and the default is an 8B model: {TOY_SIZE}")
    if options.max_length % options.documents_per_row:
        parser.error("--max-length must be a multiple of --documents-per-row")
    return options


def make_recipe(options: argparse.Namespace, base: Path) -> Recipe:
    """NF4 with double quantization, LoRA on every linear layer, the default optimizer and precision."""
    from qlora_cli.recipe.schema import Recipe

    return Recipe.model_validate(
        {
            "name": "benchmark",
            "model": {"base_model": str(base), "attn_implementation": options.attention},
            "quantization": {"quant_type": "nf4", "double_quant": True},
            "lora": {"r": options.r, "target_modules": "all-linear"},
            "data": {"train": str(base.with_name("rows.jsonl")), "max_length": options.max_length},
            "training": {
                "max_steps": options.steps,
                "per_device_train_batch_size": options.batch_size,
                "gradient_accumulation_steps": 1,
                "gradient_checkpointing": not options.no_gradient_checkpointing,
                "optim": options.optim,
                "save_strategy": "no",
            },
        }
    )


def measure(options: argparse.Namespace, workdir: Path) -> dict[str, Any]:
    """Write the base, load it, train, and return the figures."""
    from random_base import Shape, write_random_base
    from random_rows import trainer_on_random_rows

    from qlora_cli.model.device import pick_device
    from qlora_cli.run.directory import RunDirectory
    from qlora_cli.train.setup import setup_model

    shape = Shape(options.hidden, options.intermediate, options.layers, options.heads, options.kv_heads, options.vocab)
    device = pick_device()
    num_parameters = write_random_base(workdir / "base", shape, options.max_length, device)
    recipe, run = make_recipe(options, workdir / "base"), RunDirectory(workdir / "run")
    figures = {"parameters": num_parameters, **_circumstances(device)}
    _reset_memory(device)
    started = time.perf_counter()
    model = setup_model(recipe, run, is_resumed=False)
    figures |= {"load_seconds": time.perf_counter() - started, **_memory(device, "load")}
    trainer = trainer_on_random_rows(recipe, run, model, options.documents_per_row)
    step_seconds = _timed_steps(trainer, device)
    figures |= _memory(device, "train")
    seconds = statistics.median(step_seconds[NUM_WARM_UP_STEPS:])
    tokens = options.batch_size * options.max_length
    figures |= {
        "dtype": str(model.dtype).removeprefix("torch."),
        "optimizer": f"{type(trainer.optimizer.optimizer).__name__} ({trainer.args.optim.value})",
        "tokens_per_step": tokens,
        "median_step_seconds": seconds,
        "fastest_step_seconds": min(step_seconds[NUM_WARM_UP_STEPS:]),
        "slowest_step_seconds": max(step_seconds[NUM_WARM_UP_STEPS:]),
        "tokens_per_second": tokens / seconds,
    }
    return figures


def _timed_steps(trainer: QloraTrainer, device: Any) -> list[float]:
    """Train; seconds of each optimizer step, data loading included."""
    import torch
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
        ) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self.times.append(time.perf_counter())

    clock = Clock()
    trainer.add_callback(clock)
    _reset_memory(device)
    clock.times.append(time.perf_counter())
    trainer.train()
    return [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]


def _reset_memory(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _memory(device: Any, stage: str) -> dict[str, int]:
    """Most memory since the last reset; on CPU the most that this process ever held."""
    import torch

    from qlora_cli.train.callbacks.progress import peak_memory_bytes

    if device.type == "cpu":
        return {f"{stage}_peak_resident_bytes": peak_memory_bytes()}
    return {
        f"{stage}_peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
        f"{stage}_peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def _circumstances(device: Any) -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else f"CPU ({platform.machine()}), no GPU figure",
        "device_memory_bytes": torch.cuda.get_device_properties(device).total_memory if is_gpu else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
    }


def show(options: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print what was measured, with what and on what."""
    if options.json:
        chosen = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        print(json.dumps({"options": chosen, **figures}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", show_header=False, title="QLoRA training, random weights")
    for name, value in figures.items():
        table.add_row(name.replace("_bytes", "").replace("_", " "), in_words(name, value))
    Console().print(table)


def in_words(name: str, value: Any) -> str:
    """A figure with its unit, which its name ends with."""
    if value is None:
        return "-"
    if name.endswith("_bytes"):
        return f"{value / 2**30:.2f} GiB"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Measure and print; without a GPU say so and end well."""
    options = read_options()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"not_run": "no CUDA GPU"}) if options.json else "not run: no CUDA GPU")
        return
    workdir = Path(tempfile.mkdtemp(prefix="qlora-benchmark-", dir=options.workdir))
    os.environ["QLORA_CACHE"] = str(workdir / "cache")
    try:
        figures = measure(options, workdir)
    except torch.OutOfMemoryError as fault:
        sys.exit(f"not measured: out of GPU memory ({fault}); try --batch-size {max(options.batch_size // 2, 1)}")
    finally:
        shutil.rmtree(workdir)
    show(options, figures)


if __name__ == "__main__":
    main()
