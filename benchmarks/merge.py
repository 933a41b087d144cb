"""Writing a merged model: this project's writer, PEFT's `merge_and_unload` with `save_pretrained`, and `cp`.

All three make a folder of the same base in turn, each in a process of its own, and the disk is synced within the time.
Loading libraries is not in it, and for this project's writer neither is the verification, which PEFT does not have.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("qlora", "qlora NF4", "peft", "cp")
"""NF4: onto the dequantized weights, which are quantized anew on the way."""


def read_options() -> argparse.Namespace:
    """The command line; the defaults are the figures that benchmarks/README.md lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1, 2, 4], help="sizes of bases; default 1 2 4")
    parser.add_argument("--repeats", type=int, default=3, help="of each kind, in turn; medians are shown; default 3")
    parser.add_argument("--r", type=int, default=16, help="rank of the adapter, on all linear layers; default 16")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--workdir", type=Path, help="where folders are written; the system's temporary folder if unset"
    )
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if options.folder:
        print(json.dumps(measure(options.kind, options.folder)))
        return
    print("| base | kind | s | CPU s | anonymous memory before, MiB | the most, MiB |\n|---|---|---|---|---|---|")
    for gigabytes in options.gigabytes:
        with tempfile.TemporaryDirectory(dir=options.workdir) as name:
            prepare(Path(name), gigabytes, options.r)
            runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
            for _ in range(options.repeats):
                for kind in options.kinds:
                    runs[kind].append(in_a_process(kind, Path(name)))
            for kind, figures in runs.items():
                medians = {key: statistics.median(figure[key] for figure in figures) for key in figures[0]}
                print(
                    f"| {gigabytes:g} GB | {kind} | {medians['seconds']:.2f} | {medians['cpu_seconds']:.1f} "
                    f"| {medians['before']:.0f} | {medians['most']:.0f} |",
                    flush=True,
                )


def prepare(folder: Path, gigabytes: float, r: int) -> None:
    """A random base in bfloat16, and an adapter whose B is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from random_base import Shape, write_random_base
    from transformers import AutoConfig, AutoModelForCausalLM

    per_layer = 2 * (2048 * 2048 * 2.5 + 3 * 2048 * 5632)
    layers = max(1, round((gigabytes * 1e9 - 2 * 2 * 32_000 * 2048) / per_layer))
    shape = Shape(hidden=2048, intermediate=5632, layers=layers, heads=16, kv_heads=4, vocab=32_000)
    write_random_base(folder / "base", shape, 2048, torch.device("cpu"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "base"))
    tuned = get_peft_model(weightless(model), LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02)
    tuned.save_pretrained(folder / "adapter")


def in_a_process(kind: str, folder: Path) -> dict[str, float]:
    """Figures of one run."""
    command = [sys.executable, __file__, "--kind", kind, "--folder", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    shutil.rmtree(folder / "out")
    if done.returncode:
        sys.exit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(kind: str, folder: Path) -> dict[str, float]:
    """Time and anonymous memory (heap and the like, without what is mapped from files) of one way."""
    work = {"cp": with_cp, "peft": with_peft}.get(kind, with_qlora)(folder, kind)
    before = anonymous_mib()
    most, is_over = [before], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.005):
            most.append(anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, started_processor = time.perf_counter(), time.process_time()
    work()
    os.sync()
    figures = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - started_processor}
    is_over.set()
    watcher.join()
    return figures | {"before": before, "most": max(most)}


def with_cp(folder: Path, kind: str) -> Callable[[], Any]:
    """The base copied."""
    return lambda: subprocess.run(["cp", "-r", folder / "base", folder / "out"], check=True)


def with_peft(folder: Path, kind: str) -> Callable[[], Any]:
    """As PEFT's documentation does it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def work() -> None:
        base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
        PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().save_pretrained(folder / "out")

    return work


def with_qlora(folder: Path, kind: str) -> Callable[[], Any]:
    """The writer of `qlora merge`; the plan is read off a model whose base takes no memory."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    from qlora_cli.deploy.fold_plan import fold_plan, plain_skeleton
    from qlora_cli.deploy.merged_model import write_model
    from qlora_cli.deploy.stored_precision import StoredInFourBit
    from qlora_cli.model.tuned import TunedSource
    from qlora_cli.recipe.schema import ModelSection

    def work() -> None:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "base"))
        tuned = PeftModel.from_pretrained(
            weightless(model), str(folder / "adapter"), low_cpu_mem_usage=True, autocast_adapter_dtype=False
        )
        plan = fold_plan(tuned)
        if kind.endswith("NF4"):
            plan.precisions = {name: StoredInFourBit("nf4", 64, True, torch.bfloat16) for name in plan.changes}
        (folder / "out").mkdir()
        source = TunedSource(folder, ModelSection(base_model=str(folder / "base")))
        write_model(folder / "out", source, plain_skeleton(tuned), plan, dtype=None)

    return work


def weightless(model: Any) -> Any:
    """The model with every parameter a single number seen as a tensor of its shape."""
    import torch

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = torch.zeros((), dtype=torch.bfloat16).expand(parameter.shape)
                module._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
    return model


def anonymous_mib() -> float:
    """Of this process, from the kernel."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
