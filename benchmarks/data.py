"""The way from JSON Lines to packed rows on disk, against the bare tokenizer on the same rendered text.

Conversations are cut at random from Python's own language reference (`pydoc_data`), so the text is real, the same
everywhere, and no row repeats another. Every part runs in a process of its own, on an empty cache; the bare tokenizer
gets the finished text, uses all cores, and writes its tokens to one file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BARE_BATCH = 2048
MAX_LENGTH = 2048


def read_options() -> argparse.Namespace:
    """The command line; the defaults are the figures that benchmarks/README.md lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000], help="sizes to measure")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; else one of 8,192 tokens is trained")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each part; the fastest is shown")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    parser.add_argument("--part", choices=["bare", "qlora"], help=argparse.SUPPRESS)
    parser.add_argument("--workdir", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if options.part:
        print(json.dumps({"bare": measure_bare, "qlora": measure_qlora}[options.part](options.workdir)))
        return
    if not options.json:
        print("     rows   bare s  qlora s  ratio   rows/s  main MiB  worker MiB   fill")
    for num_rows in options.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_tokenizer(options.tokenizer, folder / "tokenizer")
            write_conversations(folder / "rows.jsonl", num_rows)
            bare, ours = (fastest(part, folder, options.repeats) for part in ("bare", "qlora"))
        show(num_rows, bare["seconds"], ours, as_json=options.json)


def show(num_rows: int, bare_seconds: float, ours: dict[str, Any], *, as_json: bool) -> None:
    """One line of the table, or one JSON object."""
    seconds, ratio = ours["seconds"], ours["seconds"] / bare_seconds
    if as_json:
        line = json.dumps({"rows": num_rows, "bare_seconds": bare_seconds, "ratio": ratio, **ours})
    else:
        line = (
            f"{num_rows:>9,}  {bare_seconds:>7.1f}  {seconds:>7.1f}  {ratio:>5.2f}  {num_rows / seconds:>7,.0f}  "
            f"{ours['main_mib']:>8.0f}  {ours['worker_mib']:>10.0f}  {ours['fill']:>5.3f}"
        )
    print(line, flush=True)


def save_tokenizer(source: Path | None, folder: Path) -> None:
    """A fast tokenizer with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if source is not None:
        tokenizer = AutoTokenizer.from_pretrained(source)
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=8192,
            special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(topics.values(), trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)


def write_conversations(path: Path, num_rows: int) -> None:
    """One question of 5 to 40 words and one answer of 10 to 110 a line."""
    words = " ".join(topics[name] for name in sorted(topics)).split(" ")
    chance = random.Random(0)

    def text(fewest: int, most: int) -> str:
        start = chance.randrange(len(words) - most)
        return " ".join(words[start : start + chance.randint(fewest, most)]).strip() or "Why?"

    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            user = {"role": "user", "content": f"{text(5, 40)} ({number})"}
            answer = {"role": "assistant", "content": text(10, 110)}
            file.write(json.dumps({"messages": [user, answer]}) + "\n")


def fastest(part: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Figures of the fastest of some runs of a part, each in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--workdir", str(folder)]
    runs = []
    for number in range(repeats):
        environment = {**os.environ, "QLORA_CACHE": str(folder / f"cache-{number}"), "HF_HUB_OFFLINE": "1"}
        output = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
        runs.append(json.loads(output))
    return min(runs, key=lambda run: run["seconds"])


def measure_bare(folder: Path) -> dict[str, Any]:
    """`encode_batch` over the rendered text, and one write."""
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    with (folder / "rows.jsonl").open(encoding="utf-8") as file:
        texts = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in file]

    def tokenize() -> None:
        backend = tokenizer.backend_tokenizer
        with (folder / "bare.bin").open("wb") as out:
            for start in range(0, len(texts), BARE_BATCH):
                encodings = backend.encode_batch(texts[start : start + BARE_BATCH], add_special_tokens=False)
                np.concatenate([np.array(encoding.ids, np.int32) for encoding in encodings]).tofile(out)

    return {"seconds": timed(tokenize)}


def measure_qlora(folder: Path) -> dict[str, Any]:
    """`prepare_data` on an empty cache."""
    from transformers import AutoTokenizer

    from qlora_cli.data.prepare import prepare_data
    from qlora_cli.data.render.renderer import Renderer
    from qlora_cli.recipe.data_schema import DataSection

    renderer = Renderer(AutoTokenizer.from_pretrained(folder / "tokenizer"))
    data = DataSection.model_validate({"train": str(folder / "rows.jsonl"), "max_length": MAX_LENGTH})
    seconds = timed(lambda: prepare_data(data, renderer, 0))
    prepared = prepare_data(data, renderer, 0)
    assert prepared.is_cached
    return {
        "seconds": seconds,
        "main_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "worker_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "fill": prepared.report.fill,
        "tokens": prepared.report.num_tokens,
    }


def timed(work: Callable[[], object]) -> float:
    """Seconds on the wall that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
