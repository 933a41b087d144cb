"""What `qlora plan` predicts against what a training step takes: bytes allocated and bytes reserved.

Twelve recipes on random bases of published sizes, on the road that `qlora train` takes. A base is written to disk, the
recipes on it are trained for a few steps, each in a process of its own, and the base is deleted: one at a time, up to
26 GB of disk. Predicted are `torch.cuda.max_memory_allocated` and `max_memory_reserved` after loading.

`--device cpu` trains the same recipes at toy sizes and holds the traced peak against torch's profiler. It shows that
the script runs and that the CPU's tensors are counted; it says nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_cli.plan.shape import PlanRequest
    from qlora_cli.recipe.schema import Recipe
    from qlora_cli.train.trainer import QloraTrainer

NUM_STEPS = 4
SECONDS_A_RECIPE = 900
DOCUMENTS_PER_ROW = 4
TOY_LENGTH_DIVISOR = 8

SHAPES = {
    "1B": (2048, 8192, 16, 32, 8, 128_256),
    "7B": (4096, 11_008, 32, 32, 32, 32_000),
    "8B": (4096, 14_336, 32, 32, 8, 128_256),
    "13B": (5120, 13_824, 40, 40, 40, 32_000),
    "toy": (256, 512, 4, 4, 2, 1024),
}
"""Width, MLP width, layers, heads, key heads, vocabulary: Llama 3.2 1B, Llama 2 7B, Llama 3.1 8B, Llama 2 13B."""


@dataclass(frozen=True)
class Case:
    """One recipe of the benchmark."""

    base: str
    batch_size: int
    length: int
    r: int
    checkpointing: bool = True
    double_quant: bool = True
    packed: bool = True
    accumulation: int = 1

    def __str__(self) -> str:
        said = [f"{self.base}, {self.batch_size} x {self.length}, r {self.r}"]
        said += [] if self.checkpointing else ["all kept"]
        said += [] if self.double_quant else ["plain constants"]
        said += [] if self.packed else ["not packed"]
        return ", ".join(said)


CASES = (
    Case("1B", 8, 512, 8, checkpointing=False),
    Case("1B", 4, 2048, 16, checkpointing=False, double_quant=False),
    Case("1B", 1, 8192, 64),
    Case("1B", 2, 2048, 16, packed=False, accumulation=2),
    Case("7B", 1, 512, 8, accumulation=2),
    Case("7B", 4, 2048, 16, double_quant=False),
    Case("7B", 1, 2048, 64, checkpointing=False, packed=False),
    Case("8B", 4, 2048, 16, accumulation=2),
    Case("8B", 2, 4096, 32),
    Case("8B", 8, 512, 16, packed=False),
    Case("13B", 1, 2048, 16),
    Case("13B", 2, 2048, 64, double_quant=False, accumulation=2),
)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is for trying the script out")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of recipes, from 1")
    parser.add_argument("--workdir", type=Path, help="folder for the random base; the system's temporary one if unset")
    parser.add_argument("--json", action="store_true", help="print one JSON object a recipe instead of a table")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> Iterator[tuple[int, Case]]:
    """Number and recipe, on a CPU at toy size."""
    for number, case in enumerate(CASES, 1):
        if options.only and number not in options.only:
            continue
        is_toy = options.device == "cpu"
        yield number, replace(case, base="toy", length=case.length // TOY_LENGTH_DIVISOR) if is_toy else case


def recipe_of(case: Case, base: Path) -> Recipe:
    """The case as a recipe, with the default optimizer and precision."""
    from qlora_cli.recipe.schema import Recipe

    return Recipe.model_validate(
        {
            "name": "benchmark",
            "model": {"base_model": str(base)},
            "quantization": {"double_quant": case.double_quant},
            "lora": {"r": case.r, "lora_alpha": 2 * case.r},
            "data": {"train": str(base.with_name("rows.jsonl")), "max_length": case.length, "packing": case.packed},
            "training": {
                "max_steps": NUM_STEPS,
                "per_device_train_batch_size": case.batch_size,
                "gradient_accumulation_steps": case.accumulation,
                "gradient_checkpointing": case.checkpointing,
                "save_strategy": "no",
            },
        }
    )


def measure(case: Case, workdir: Path) -> dict[str, Any]:
    """Predict and train, in this process; the base is in `workdir` already."""
    import torch
    from random_rows import trainer_on_random_rows

    from qlora_cli.model.base import read_config
    from qlora_cli.model.device import pick_device
    from qlora_cli.plan.device import Device
    from qlora_cli.plan.report import choose_target
    from qlora_cli.plan.shape import PlanRequest
    from qlora_cli.run.directory import RunDirectory
    from qlora_cli.train.assembly import make_model

    recipe, device = recipe_of(case, workdir / "base"), pick_device()
    target = choose_target(None, None)
    planned = target.device if device.type == "cuda" else Device("cpu")
    request = PlanRequest(recipe, read_config(recipe.model), planned)
    predicted = predict(request)
    if device.type == "cuda" and predicted["device"] > (target.memory_bytes or 0):
        return {"predicted": predicted, "not_run": f"needs {predicted['device'] / 2**30:.1f} GiB"}
    with tempfile.TemporaryDirectory(dir=workdir) as name:
        run = RunDirectory(Path(name))
        model = make_model(recipe, run, is_resumed=False)
        documents = DOCUMENTS_PER_ROW if case.packed else 1
        trainer = trainer_on_random_rows(recipe, run, model, documents)
        if device.type == "cpu":
            return {"predicted": predicted, "measured": {"step": profiled_peak(trainer)}}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        trainer.train()
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"predicted": predicted, "measured": {"allocated": allocated, "reserved": reserved}}


def predict(request: PlanRequest) -> dict[str, int]:
    """Bytes by what they are compared with; `step` is what comes and goes within a step."""
    from qlora_cli.plan.planner import plan
    from qlora_cli.plan.trace import Kind

    bill = plan(request)
    # With accumulation a trace begins with gradients, being the last of a step's passes; a step begins without.
    steady = sum(life.num_bytes for life in bill.trace.lives if not life.born and life.kind is not Kind.GRADIENTS)
    needs = bill.needs
    return {
        "allocated": needs.allocated_bytes,
        "reserved": needs.reserved_bytes,
        "device": needs.device_bytes,
        "step": bill.peak.num_bytes - steady,
    }


def profiled_peak(trainer: QloraTrainer) -> int:
    """Train; most bytes that the last step has allocated and not yet given back, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    class LastStep(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: object) -> None:
            if state.global_step == NUM_STEPS - 1:
                profiler.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: object) -> None:
            if state.global_step == NUM_STEPS:
                profiler.stop()

    trainer.add_callback(LastStep())
    trainer.train()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def in_a_process(options: argparse.Namespace, number: int, workdir: Path) -> dict[str, Any]:
    """Figures of one recipe, or why there are none."""
    command = [sys.executable, __file__, "--device", options.device, "--case", str(number), "--workdir", str(workdir)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "QLORA_CACHE": str(workdir / "cache")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS_A_RECIPE)
    except subprocess.TimeoutExpired:
        return {"not_run": f"took more than {SECONDS_A_RECIPE} s"}
    if done.returncode:
        return {"not_run": " ".join(done.stderr.strip().splitlines()[-1:])}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_all(options: argparse.Namespace) -> None:
    """Base by base, recipe by recipe; a line for each."""
    import torch
    from random_base import Shape, write_random_base

    results = []
    device = torch.device(options.device)
    for base, cases in groupby(chosen(options), key=lambda numbered: numbered[1].base):
        workdir = Path(tempfile.mkdtemp(prefix="qlora-benchmark-", dir=options.workdir))
        try:
            write_random_base(workdir / "base", Shape(*SHAPES[base]), 8192, device)
            for number, case in cases:
                figures = in_a_process(options, number, workdir)
                results.append(figures)
                line = json.dumps({"number": number, **asdict(case), **figures}) if options.json else row(case, figures)
                print(line, flush=True)
        finally:
            shutil.rmtree(workdir)
    if not options.json:
        print("\n".join(worst(results)))


def row(case: Case, figures: dict[str, Any]) -> str:
    """A line of the table: predicted, measured and error of each figure."""
    if "not_run" in figures:
        return f"{case!s:<48}  not run: {figures['not_run']}"
    cells = []
    for name, measured in figures["measured"].items():
        predicted = figures["predicted"][name]
        unit, size = ("GiB", 2**30) if measured >= 2**30 else ("MiB", 2**20)
        error = predicted / measured - 1
        cells.append(f"{name} {predicted / size:8.2f} {measured / size:8.2f} {unit} {error:+7.2%}")
    return f"{case!s:<48}  {'   '.join(cells)}"


def worst(results: list[dict[str, Any]]) -> list[str]:
    """The largest errors, and how far a prediction was too low."""
    lines = []
    measured = [figures for figures in results if "measured" in figures]
    for name in measured[0]["measured"] if measured else ():
        errors = [figures["predicted"][name] / figures["measured"][name] - 1 for figures in measured]
        lines.append(
            f"{name}: worst error {max(errors, key=abs):+.2%}, lowest {min(errors):+.2%}, over {len(errors)} recipes"
        )
    return lines


def main() -> None:
    """Measure and print; without a GPU say so and end well."""
    options = read_options()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"not_run": "no CUDA GPU"}) if options.json else "not run: no CUDA GPU")
        return
    if options.case is not None:
        case = next(case for number, case in chosen(options) if number == options.case)
        print(json.dumps(measure(case, options.workdir)))
        return
    if not options.json:
        print(f"{'recipe':<48}  predicted, measured, error")
    run_all(options)


if __name__ == "__main__":
    main()
