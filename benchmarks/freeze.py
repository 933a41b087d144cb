"""Record what the commands write and print, and compare two records: a refactor must change nothing.

    python benchmarks/freeze.py record before.json     # in the old tree, and again in the new one
    python benchmarks/freeze.py compare before.json after.json

A record holds, each under a name that says where it came from:

- the SHA-256 of every file of each run: two checkpoints, the adapter, the lists; JSON without its times and places;
- every loss and gradient norm of each run, as the shortest text of the float;
- stdout, stderr and exit code of commands on these runs, with and without `--json`;
- the error of each malformed recipe of the tests, and of data files that are broken in ways of their own.

Both records must be made on one machine, whose CPU rounds sums in its own way; each command starts with empty caches.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6

RECIPE: dict[str, Any] = {
    "model": {"base_model": "base"},
    "lora": {"r": 4, "lora_dropout": 0.1},
    "data": {"train": "rows.jsonl", "eval_fraction": 0.1, "max_length": 128},
    "training": {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": 9,
    },
    "eval": {"eval_strategy": "steps", "eval_steps": 3},
}

RUNS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"model": {"dtype": "bfloat16"}},
    "nf4": {"quantization": {}},
    "int8": {"quantization": {"quant_type": "int8"}},
    "loftq": {"quantization": {}, "lora": {"init_lora_weights": "loftq"}},
    "pissa": {"lora": {"init_lora_weights": "pissa"}},
    "dora": {"lora": {"use_dora": True}},
    "unpacked": {"data": {"packing": False}},
    "resumed": {"quantization": {}},
    "two-processes": {},
}
"""Name of a run -> the sections in which its recipe differs."""

COMMANDS = [
    ["validate", "nf4.yaml"],
    ["plan", "nf4.yaml"],
    ["plan", "nf4.yaml", "--json"],
    ["plan", "nf4.yaml", "--gpu", "4090", "--fit", "--json"],
    ["plan", "nf4.yaml", "--gpu", "4090", "--fit"],
    ["data", "check", "nf4.yaml"],
    ["data", "check", "nf4.yaml", "--json"],
    ["data", "show", "nf4.yaml", "--rows", "1"],
    ["eval", "runs/nf4", "--json"],
    ["merge", "runs/nf4", "--json"],
    ["merge", "runs/fp32", "--out", "merged-fp32"],
    ["export", "runs/dora", "--out", "exported", "--json"],
    ["generate", "runs/nf4", "--prompt", "What is 2 plus 2?", "--max-new-tokens", "8"],
    ["runs"],
    ["runs", "--json"],
    ["train", "fp32.yaml"],
    ["train", "fp32.yaml", "--set", "lora.r=0"],
    ["train", "nowhere.yaml"],
    ["merge", "runs"],
    ["eval", "nowhere"],
    ["--help"],
    ["train", "--help"],
    ["schema"],
    ["recipes", "--json"],
    ["recipes", "smoke", "--json"],
    ["validate", "nf4.yaml", "--json"],
    ["validate", "nowhere.yaml", "--json"],
    ["generate", "runs/nf4", "--prompt", "What is 2 plus 2?", "--max-new-tokens", "8", "--json"],
]
"""Commands that are run in this order after the training."""

BROKEN_DATA: dict[str, bytes] = {
    "no JSON": b'{"messages": [\n',
    "no row": b"",
    "a number": b"5\n",
    "a list": b"[1, 2]\n",
    "not UTF-8": b'{"text": "\xff\xfe"}\n',
    "twice the key": b'{"text": "a", "text": "b"}\n',
    "no known columns": b'{"a": 1, "b": 2}\n',
    "no answer": b'{"messages": [{"role": "user", "content": "a"}]}\n',
    "unknown role": b'{"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
    "content is a number": b'{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "b"}]}\n',
    "no content": b'{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}\n',
    "weight is a word": b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", '
    b'"weight": "much"}]}\n',
    "an empty answer": b'{"instruction": "a", "input": "", "output": ""}\n',
    "one of two": b'{"prompt": "a"}\n',
    "preferences": b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
    "too long": b'{"prompt": "a", "completion": "' + b"word " * 900 + b'"}\n',
    "text and answer": b'{"text": "a", "output": "b"}\n',
}

LEFT_OUT = (".lock", "log.txt")
"""Files of a run that hold a process id, and what libraries say with their times."""

FOLDER = Path(tempfile.gettempdir()) / "qlora-freeze"
"""Both records are made in a folder of this name, since configurations name it; it must not be there."""

_VOLATILE_KEY = re.compile(
    r"second|time|date|started|finished_at|created|^pid$|host|peak_memory|resident|free|speed|runtime|per_s$|commit|machine",
    re.IGNORECASE,
)
"""JSON keys whose values differ from one run to the next on the same tree."""

_VOLATILE_TEXT = [
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(\+\d\d:\d\d|Z)?"), "DATE"),
    (re.compile(r"\d+(\.\d+)? ?(tokens/s|rows/s|s\b|min\b|h\b|MiB|GiB|MB\b|GB\b|KB\b|kB\b)"), "FIGURE"),
    (re.compile(r".*( \.\.\.|so far)\n"), ""),
    (re.compile(r"step \d+/\d+  .*\n"), ""),  # how many of them there are, the clock decides
    (re.compile(r" +"), " "),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record", help="run everything and write a record")
    recording.add_argument("file", type=Path)
    comparing = actions.add_parser("compare", help="show what differs between two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.action == "compare":
        sys.exit(compare(*(json.loads(path.read_text()) for path in (options.before, options.after))))
    FOLDER.mkdir()
    try:
        record = dict(sorted(recorded(FOLDER)))
    finally:
        shutil.rmtree(FOLDER)
    options.file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(record):,} facts recorded")


def compare(before: dict[str, str], after: dict[str, str]) -> int:
    """Print what differs; the exit code says whether anything does."""
    names = sorted(before.keys() | after.keys())
    different = [name for name in names if before.get(name) != after.get(name)]
    for name in different:
        print(f"{name}\n  before: {before.get(name)}\n  after:  {after.get(name)}")
    print(f"{len(names) - len(different):,} of {len(names):,} facts are equal")
    return int(bool(different))


def recorded(folder: Path) -> Iterator[tuple[str, str]]:
    """Every fact, with its name."""
    write_rows(folder / "rows.jsonl")
    run(folder, ["tiny", "base", "--steps", "20", "--hidden", "64", "--layers", "2"])
    yield from files_of(folder / "base", "base")
    for name, sections in RUNS.items():
        merged = {key: {**RECIPE.get(key, {}), **sections.get(key, {})} for key in RECIPE.keys() | sections.keys()}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({key: merged[key] for key in sorted(merged)}))
        yield from train(folder, name)
        yield from files_of(folder / "runs" / name, f"runs/{name}")
        yield from losses_of(folder / "runs" / name / "metrics.jsonl", name)
    for arguments in COMMANDS:
        yield f"command {' '.join(arguments)}", run(folder, arguments)
    for out in ("runs/nf4/merged", "merged-fp32", "exported"):
        yield from files_of(folder / out, out)
    yield from errors_of_recipes(folder)
    for name, content in BROKEN_DATA.items():
        (folder / "broken.jsonl").write_bytes(content)
        arguments = ["data", "check", "fp32.yaml", "--set", "data.train=broken.jsonl", "--set", "data.eval_fraction=0"]
        yield f"data {name}", run(folder, arguments)


def write_rows(path: Path) -> None:
    """Chats of one or two exchanges about sums, so that there is something to learn."""
    chance = random.Random(0)
    with path.open("w") as file:
        for _ in range(120):
            messages = []
            for _ in range(chance.randint(1, 2)):
                a, b = chance.randint(1, 99), chance.randint(1, 99)
                messages += [{"role": "user", "content": f"What is {a} plus {b}?"}]
                messages += [{"role": "assistant", "content": f"{a} plus {b} is {a + b}."}]
            file.write(json.dumps({"messages": messages}) + "\n")


def train(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Train a recipe in the way that its name says."""
    recipe = f"{name}.yaml"
    if name == "resumed":
        yield f"{name}: stopped", run(folder, ["train", recipe, "--stop-after", "3"])
        yield f"{name}: resumed", run(folder, ["train", recipe, "--resume", "--json"])
    elif name == "two-processes":
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517", "-m", "qlora_cli"]
        yield f"{name}: trained", run(folder, ["train", recipe, "--json"], program=launcher)
    else:
        yield f"{name}: trained", run(folder, ["train", recipe, "--json"])


def run(folder: Path, arguments: list[str], program: list[str] | None = None) -> str:
    """Exit code, stdout and stderr of a command, with an empty cache, less what differs from run to run."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "QLORA_CACHE": cache,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",  # PEFT writes a set of module names
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }
        command = [sys.executable, *(program or ["-m", "qlora_cli"]), *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    texts = [
        steady_text(text.replace(cache, "CACHE").replace(str(folder), "HERE")) for text in (done.stdout, done.stderr)
    ]
    return f"exit {done.returncode}\n{texts[0]}\n--\n{texts[1]}"


def steady_text(text: str) -> str:
    """Output of a command without times, sizes of memory and progress."""
    try:
        return json.dumps(steady_value(json.loads(text)), indent=1)
    except json.JSONDecodeError:
        pass
    for pattern, name in _VOLATILE_TEXT:
        text = pattern.sub(name, text)
    return text


def steady_value(value: Any) -> Any:
    """JSON without the values that differ from run to run; their keys stay."""
    if isinstance(value, dict):
        return {
            key: type(item).__name__
            if _VOLATILE_KEY.search(key) and not isinstance(item, dict | list)
            else steady_value(item)
            for key, item in value.items()
        }
    return [steady_value(item) for item in value] if isinstance(value, list) else value


def files_of(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """The hash of every file below a folder."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in LEFT_OUT):
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl") and not path.name.startswith(("tokenizer", "model.safetensors")):
            lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
            content = "\n".join(json.dumps(steady_value(json.loads(line))) for line in lines).encode()
        elif path.suffix in (".md", ".txt", ".html", ".yaml", ".log", ""):
            content = steady_text(content.decode("utf-8", "replace")).encode()
        yield f"file {name}/{path.relative_to(folder)}", hashlib.sha256(content).hexdigest()


def losses_of(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Each figure of training, as exactly as the file has it."""
    for number, line in enumerate(path.read_text().splitlines()):
        for key, value in json.loads(line).items():
            if "loss" in key or "norm" in key or "learning_rate" in key or "accuracy" in key:
                yield f"metric {name}:{number} {key}", repr(value)


def errors_of_recipes(folder: Path) -> Iterator[tuple[str, str]]:
    """Errors of each malformed recipe of the tests, in one process."""
    program = (
        "import json, pathlib, sys\n"
        "from qlora_cli.errors import QloraError\n"
        "from qlora_cli.recipe.reader import load_recipe\n"
        "from tests.recipe.malformed import MALFORMED\n"
        "for name, (content, *_) in MALFORMED.items():\n"
        "    path = pathlib.Path('recipe.yaml')\n"
        "    path.write_bytes(content if isinstance(content, bytes) else content.encode())\n"
        "    try:\n"
        "        load_recipe(path)\n"
        "        said = 'valid'\n"
        "    except QloraError as error:\n"
        "        said = f'{error.exit_code} ' + '\\n'.join(map(str, error.problems))\n"
        "    print(json.dumps([name, said]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        name, said = json.loads(line)
        yield f"recipe {name}", said


if __name__ == "__main__":
    main()
