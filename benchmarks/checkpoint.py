"""Cost of saving: a run that writes a checkpoint every few steps, beside one that writes only the last.

Both train the same adapter on the same packed rows, in turns, each in a process of its own. A clock around every part
of a save says where its time goes. The random base is as small as a base gets, its steps are short, and so the cost
that is measured is the highest there is; `--base` takes a real one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

TRAINING = "training"
ROTATION = "deleting old ones"
"""Once a save."""


def read_options() -> argparse.Namespace:
    """The command line; the defaults are the figures that benchmarks/README.md lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of a base model; else one of random weights is made")
    for name, default in {"r": 16, "steps": 100, "save-steps": 50, "batch-size": 4, "max-length": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--optim", default="paged_adamw_8bit", help="training.optim; default paged_adamw_8bit")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind; medians are shown; default 3")
    parser.add_argument("--workdir", type=Path, help="where runs are written; the system's temporary folder if unset")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--saves", type=int, choices=[0, 1], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if options.folder:
        print(json.dumps(measure(options, options.folder, saves=bool(options.saves))))
        return
    with tempfile.TemporaryDirectory(dir=options.workdir) as name:
        folder = Path(name)
        prepare(options.base, folder)
        runs: dict[str, list[dict[str, Any]]] = {"saving": [], "not saving": []}
        for _ in range(options.repeats):
            for kind, collected in runs.items():
                collected.append(in_a_process(folder, saves=kind == "saving"))
    figures = summary(options, runs)
    print(json.dumps(figures) if options.json else table(options, figures), flush=True)


def prepare(base: Path | None, folder: Path) -> None:
    """Base and conversations."""
    from data import write_conversations

    from qlora_cli.model.tiny import TinyOptions, make_tiny_base

    if base is None:
        make_tiny_base(folder / "base", TinyOptions(steps=0))
    else:
        (folder / "base").symlink_to(base.resolve())
    write_conversations(folder / "rows.jsonl", 1000)


def in_a_process(folder: Path, *, saves: bool) -> dict[str, Any]:
    """Figures of one run."""
    command = [sys.executable, *sys.argv, "--saves", str(int(saves)), "--folder", str(folder)]
    environment = {**os.environ, "QLORA_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


class Stopwatch:
    """Seconds spent in functions, each without those that it calls and that are watched too.

    Nothing is counted outside of the first that is watched.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.processor_seconds = 0.0
        """Of all threads, in the outermost function and all that it calls."""
        self._inner: list[float] = []

    def watch(self, owner: Any, name: str, part: str, *, is_outermost: bool = False) -> None:
        """Replace a function or method by one that is timed."""
        function = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            if not self._inner and not is_outermost:
                return function(*arguments, **keywords)
            self._inner.append(0.0)
            started, started_processor = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                elapsed = time.perf_counter() - started
                if is_outermost:
                    self.processor_seconds += time.process_time() - started_processor
                self.seconds[part] += elapsed - self._inner.pop()
                self.calls[part] += 1
                if self._inner:
                    self._inner[-1] += elapsed

        setattr(owner, name, watched)


def watched_saves() -> Stopwatch:
    """A clock on training and on the parts of every save."""
    from qlora_cli.run import checkpoints, files
    from qlora_cli.train import trainer
    from qlora_cli.train.checkpoint import training_state

    watch = Stopwatch()
    watch.watch(trainer.QloraTrainer, "train", TRAINING, is_outermost=True)
    watch.watch(trainer.QloraTrainer, "_save_checkpoint", "the rest")
    watch.watch(trainer.QloraTrainer, "check_finite", "looking for NaN")
    watch.watch(files, "fsync", "fsync")
    watch.watch(checkpoints, "sha256_file", "sha256")
    watch.watch(training_state, "save_adapter", "writing the adapter")
    watch.watch(training_state, "save_optimizer", "writing the optimizer")
    for name in ("random_state", "pack_state", "unpack_state", "save_state"):
        watch.watch(training_state, name, "small states")
    watch.watch(trainer, "rotate_checkpoints", ROTATION)
    return watch


def measure(options: argparse.Namespace, folder: Path, *, saves: bool) -> dict[str, Any]:
    """Train once, in a new run directory."""
    from qlora_cli import compat, environment

    environment.let_idle_threads_sleep()
    compat.keep_imports_quiet()
    from qlora_cli.recipe.schema import Recipe
    from qlora_cli.run.directory import RunDirectory
    from qlora_cli.train.session import TrainOptions, train_recipe

    watch = watched_saves()
    recipe = Recipe.model_validate(
        {
            "name": "benchmark",
            "model": {"base_model": str(folder / "base")},
            "quantization": {},
            "lora": {"r": options.r},
            "data": {"train": str(folder / "rows.jsonl"), "max_length": options.max_length},
            "training": {
                "max_steps": options.steps,
                "per_device_train_batch_size": options.batch_size,
                "gradient_accumulation_steps": 1,
                "optim": options.optim,
                "save_strategy": "steps" if saves else "no",
                "save_steps": options.save_steps if saves else None,
            },
        }
    )
    with tempfile.TemporaryDirectory(dir=folder) as name:
        run = RunDirectory(Path(name))
        train_recipe(recipe, run, TrainOptions())
        newest = run.checkpoints_path / f"step-{options.steps:06d}"
        num_bytes = sum(path.stat().st_size for path in newest.iterdir())
    training = watch.seconds.pop(TRAINING)
    return {
        "training": training,
        "processor": watch.processor_seconds,
        "num_saves": watch.calls[ROTATION],
        "parts": dict(watch.seconds),
        "bytes": num_bytes,
    }


def summary(options: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the runs of each kind; seconds."""
    saving = runs["saving"]
    parts = {
        part: statistics.median(run["parts"].get(part, 0.0) / run["num_saves"] for run in saving)
        for part in saving[0]["parts"]
    }
    walls = {kind: [run["training"] + sum(run["parts"].values()) for run in same] for kind, same in runs.items()}
    share = (sum(run["parts"].values()) / run["training"] for run in saving)
    return {
        "step_seconds": statistics.median(run["training"] / options.steps for run in saving),
        "step_processor_seconds": statistics.median(run["processor"] / options.steps for run in saving),
        "save_seconds": statistics.median(sum(run["parts"].values()) / run["num_saves"] for run in saving),
        "share": statistics.median(share),
        "parts": dict(sorted(parts.items(), key=lambda item: -item[1])),
        "checkpoint_bytes": saving[0]["bytes"],
        "wall_seconds": {kind: statistics.median(seconds) for kind, seconds in walls.items()},
        "wall_ranges": {kind: [min(seconds), max(seconds)] for kind, seconds in walls.items()},
        "num_saves": {kind: same[0]["num_saves"] for kind, same in runs.items()},
    }


def table(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{options.steps} steps of {figures['step_seconds'] * 1000:,.0f} ms "
        f"({figures['step_processor_seconds'] * 1000:,.0f} ms of processor time)",
        f"a checkpoint of {figures['checkpoint_bytes'] / 1e6:.2f} MB takes {figures['save_seconds'] * 1000:,.1f} ms",
        f"saving every {options.save_steps} steps adds {figures['share']:.2%} to the steps",
    ]
    for part, seconds in figures["parts"].items():
        lines.append(f"  {part:<22} {seconds * 1000:>8.1f} ms  {seconds / figures['save_seconds']:>6.1%}")
    for kind, seconds in figures["wall_seconds"].items():
        (least, most), num_saves = figures["wall_ranges"][kind], figures["num_saves"][kind]
        lines.append(f"{kind:<10}  {seconds:.2f} s ({least:.2f} to {most:.2f}), {num_saves} checkpoints")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
