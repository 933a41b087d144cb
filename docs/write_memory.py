"""The tables of docs/memory.md, from arithmetic and from traces of the training step. Three minutes on two cores.

    .venv/bin/python docs/write_memory.py                    write the page's tables again
    .venv/bin/python docs/write_memory.py --bases FOLDER     write FOLDER/<base>/config.json and recipe.yaml, with which
                                                             the commands of the page run without the Hub

`tests/test_memory_page.py` fails when the page and what is computed differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from memory_bases import BASES, counts, traced, write_bases
from memory_points import POINTS, point_row

from qlora_cli.plan.budget import MemoryBudget
from qlora_cli.plan.machine.gpus import find_card
from qlora_cli.plan.trace.live_memory import MemoryKind

PAGE = Path(__file__).with_name("memory.md")
GIB, GB = 2**30, 10**9

Rows = list[tuple[str, ...]]

WEIGHTS = (MemoryKind.BASE_QUANTIZED, MemoryKind.QUANTIZATION_CONSTANTS, MemoryKind.BASE_16BIT)
STATE = (MemoryKind.ADAPTER, MemoryKind.GRADIENTS, MemoryKind.OPTIMIZER)


def parts(bill: MemoryBudget) -> tuple[str, ...]:
    """GiB of weights, of the adapter with gradients and optimizer, of the step's tensors, of CUDA; and of all."""
    by_kind = bill.peak.by_kind
    weights = sum(by_kind.get(kind, 0) for kind in WEIGHTS)
    state = sum(by_kind.get(kind, 0) for kind in STATE)
    tensors = bill.peak.num_bytes
    sizes = (weights, state, tensors - weights - state, bill.needs.device_bytes - tensors, bill.needs.device_bytes)
    return tuple(gib(size) for size in sizes)


def gib(num_bytes: float) -> str:
    """
    >>> gib(3 * 2**29)
    '1.50'
    """
    return f"{num_bytes / GIB:,.2f}"


def gb(num_bytes: float) -> str:
    """
    >>> gb(112e9)
    '112.0'
    """
    return f"{num_bytes / GB:,.1f}"


def table(head: tuple[str, ...], rows: Rows) -> str:
    """Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def full_fine_tuning() -> str:
    """Weights, gradients and AdamW's moments of all parameters; no activations."""
    ways = {
        "all in float32": ("4 + 4 + 4 + 4", 16.0),
        "16 bit, a float32 copy, moments in float32": ("2 + 2 + 4 + 8", 16.0),
        "16 bit, moments in float32": ("2 + 2 + 8", 12.0),
        "all in 16 bit, the moments too": ("2 + 2 + 4", 8.0),
        "16 bit, moments in 8 bit": ("2 + 2 + 2 + 8/256", 6 + 8 / 256),
    }
    sizes = (sum(counts(BASES["llama-2-7b"]())), sum(counts(BASES["llama-65b"]())))
    rows = [(way, terms, *(gb(num_bytes * size) for size in (7e9, *sizes))) for way, (terms, num_bytes) in ways.items()]
    return table(("full fine-tuning", "bytes a parameter", "7e9, GB", "Llama 2 7B, GB", "LLaMA 65B, GB"), rows)


METHODS = {"LoRA on 16 bit": ("quantization=null",), "QLoRA": ()}
STEPS = {
    "1 x 512": ("data.max_length=512",),
    "1 x 2,048": (),
    "4 x 2,048": ("training.per_device_train_batch_size=4",),
    "4 x 2,048, all activations kept": (
        "training.per_device_train_batch_size=4",
        "training.gradient_checkpointing=false",
    ),
}
HEAD = ("weights", "adapter, gradients, optimizer", "activations and the rest of the step", "CUDA", "all, GiB")


def methods() -> str:
    """LoRA and QLoRA on Llama 2 7B."""
    rows = [
        (method, step, *parts(traced("llama-2-7b", *settings, *more)), as_options(*settings, *more))
        for method, settings in METHODS.items()
        for step, more in STEPS.items()
    ]
    return table(("method", "rows", *HEAD, "add to the command"), rows)


KEEPING = (
    ("training.gradient_checkpointing=true", "training.activation_offloading=true"),
    ("training.gradient_checkpointing=true",),
    ("training.gradient_checkpointing=false",),
)


def activations() -> str:
    """Memory that a QLoRA step of Llama 2 7B keeps on the GPU, by what is done about it."""
    config = BASES["llama-2-7b"]()
    tokens = {"1 x 512": 512, "1 x 2,048": 2048, "4 x 2,048": 8192}
    rows = []
    for step, num_tokens in tokens.items():
        inputs = num_tokens * config.num_hidden_layers * config.hidden_size * 2
        kept = [
            traced("llama-2-7b", *STEPS[step], *settings).peak.by_kind[MemoryKind.ACTIVATIONS] for settings in KEEPING
        ]
        rows.append((step, gib(inputs), *map(gib, kept), f"{kept[-1] / num_tokens / 2**20:.1f}"))
    head = (
        "rows",
        "inputs of 32 layers, by arithmetic, GiB",
        "kept with checkpointing and offloading, GiB",
        "with checkpointing, GiB",
        "without, GiB",
        "without, MiB a token",
    )
    return table(head, rows)


def savings() -> str:
    """Savings of QLoRA against LoRA on 16 bit, by what is counted."""
    rows = []
    linear, rest = counts(BASES["llama-2-7b"]())
    quantized = nf4_bytes(linear) + 2 * rest
    rows.append(("weights alone", gib(2 * (linear + rest)), gib(quantized), less(2 * (linear + rest), quantized)))
    for step, more in STEPS.items():
        lora, qlora = (traced("llama-2-7b", *settings, *more).needs.device_bytes for settings in METHODS.values())
        rows.append((step, gib(lora), gib(qlora), less(lora, qlora)))
    return table(("a step of", "LoRA on 16 bit, GiB", "QLoRA, GiB", "less"), rows)


def less(before: float, after: float) -> str:
    """
    >>> less(4, 3)
    '-25%'
    """
    return f"{after / before - 1:.0%}"


def nf4_bytes(num_weights: int, *, double_quant: bool = True) -> float:
    """4 bit a weight and the constants of blocks of 64 (arXiv:2305.14314, section 3).

    >>> nf4_bytes(64 * 256) * 8 / (64 * 256)
    4.126953125
    """
    constants = num_weights / 64 * (1 + 4 / 256 if double_quant else 4)
    return num_weights / 2 + constants


def double_quantization() -> str:
    """Bits of constants, and what double quantization saves."""
    rows = []
    for base in ("llama-2-7b", "llama-3.1-8b", "llama-65b", "llama-3.1-70b"):
        linear, _ = counts(BASES[base]())
        plain, double = nf4_bytes(linear, double_quant=False), nf4_bytes(linear)
        bits = (f"{(size - linear / 2) * 8 / linear:.3f}" for size in (plain, double))
        rows.append((base, f"{linear:,}", *bits, gb(plain), gb(double), f"{(plain - double) / GB:.2f}"))
    head = ("base", "quantized weights", "bit plain", "bit double", "plain, GB", "double, GB", "saved, GB")
    return table(head, rows)


def large() -> str:
    """Steps of LLaMA 65B against a card of 48 GB."""
    small, more_rows = "data.max_length=512", "training.per_device_train_batch_size=4"
    steps = {
        "QLoRA, r 16, 1 x 512": (small,),
        "QLoRA, r 64, 1 x 512": ("lora.r=64", small),
        "QLoRA, r 16, 1 x 2,048": (),
        "QLoRA, r 64, 1 x 2,048": ("lora.r=64",),
        "QLoRA, r 16, 4 x 2,048": (more_rows,),
        "LoRA on 16 bit, r 16, 1 x 2,048": ("quantization=null",),
    }
    memory = find_card("a6000").memory_bytes
    rows = []
    for step, settings in steps.items():
        bill = traced("llama-65b", *settings)
        verdict = "yes" if bill.needs.device_bytes <= memory else "no"
        rows.append((step, *parts(bill), verdict, as_options(*settings)))
    return table(("step", *HEAD, f"fits in {gib(memory)} GiB", "add to the command"), rows)


def logits() -> str:
    """The loss that holds all logits, and the one that holds a tile of them."""
    rows = []
    for base, vocabulary in (("llama-2-7b", 32_000), ("llama-3.1-8b", 128_256)):
        for step, num_tokens, more in (("1 x 2,048", 2048, ()), ("4 x 2,048", 8192, STEPS["4 x 2,048"])):
            whole = num_tokens * vocabulary * (2 + 4 + 4)
            rows.append((base, step, gib(whole), gib(traced(base, *more).trace.largest[MemoryKind.LOSS])))
    return table(("base", "tokens", "all logits at once, GiB", "tile by tile, GiB"), rows)


def optimizer_state() -> str:
    """The adapter on all linear layers, its gradients, and AdamW's state in 32 and in 8 bit."""
    rows = []
    for base in ("llama-2-7b", "llama-65b"):
        config = BASES[base]()
        hidden, layers = config.hidden_size, config.num_hidden_layers
        for r in (8, 16, 64):
            trained = r * layers * (4 * 2 * hidden + 3 * (hidden + config.intermediate_size))
            sizes = (gib(trained * num_bytes) for num_bytes in (4, 4, 8, 2 + 8 / 256))
            rows.append((base, f"{r}", f"{trained:,}", *sizes))
    head = ("base", "r", "trained", "adapter, GiB", "gradients, GiB", "state in 32 bit, GiB", "in 8 bit, GiB")
    return table(head, rows)


def true_bits() -> str:
    """Bits a parameter over the whole model: embeddings, head and norms stay in 16 bit."""
    rows = []
    for base in ("qwen2.5-0.5b", "llama-3.2-1b", "llama-2-7b", "llama-3.1-8b", "llama-65b", "llama-3.1-70b"):
        linear, rest = counts(BASES[base]())
        size, whole = nf4_bytes(linear) + 2 * rest, 2 * (linear + rest)
        bits = size * 8 / (linear + rest)
        share = rest / (linear + rest)
        rows.append(
            (base, f"{linear + rest:,}", f"{share:.1%}", gib(whole), gib(size), f"{bits:.2f}", f"{size / whole:.0%}")
        )
    head = ("base", "parameters", "not quantized", "16 bit, GiB", "NF4, GiB", "bit a parameter", "of the 16-bit size")
    return table(head, rows)


def experts() -> str:
    """Steps of two mixtures of experts, 1 x 2,048 tokens."""
    attention = "lora.target_modules=[q_proj,k_proj,v_proj,o_proj]"
    ways = (
        ("16 bit", "attention", ("quantization.experts=false", attention)),
        ("4 bit", "attention", (attention,)),
        ("4 bit", "experts too", ()),
    )
    rows = []
    for base in ("mixtral-8x7b", "qwen3-30b-a3b"):
        for stored, where, settings in ways:
            bill = traced(base, *settings)
            facts = bill.facts
            shares = (f"{facts.num_quantized / facts.num_base:.1%}", f"{facts.num_trained / 1e6:,.0f} M")
            rows.append((base, stored, where, *shares, *parts(bill)))
    return table(("base", "experts in", "adapter on", "quantized", "trained", *HEAD), rows)


def points() -> str:
    """Measurements of others beside the plan of the same step."""
    head = ("measured by", "base", "measured", "planned: tensors / reserved", "with all logits", "difference")
    return table(head, [point_row(point) for point in POINTS])


def as_options(*settings: str) -> str:
    """
    >>> as_options("lora.r=8", "data.max_length=512")
    '`--set lora.r=8 --set data.max_length=512`'
    """
    return f"`{' '.join(f'--set {setting}' for setting in settings)}`" if settings else ""


BY_ARITHMETIC = (full_fine_tuning, double_quantization, optimizer_state, true_bits)
BY_TRACING = (methods, activations, savings, large, logits, experts, points)


def rewritten(page: str, *makers: Callable[[], str]) -> str:
    """The page with these tables made again, each between two comments that name its function.

    Raises:
        ValueError: if the page does not hold each of them once.
    """
    for maker in makers:
        name = maker.__name__
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not start or not end:
            raise ValueError(f"the page holds no table named {name}")
        page = before + start + maker() + end + after
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=Path, metavar="FOLDER", help="write configurations and recipes there")
    folder = parser.parse_args().bases
    if folder is not None:
        write_bases(folder)
        print(f"wrote {', '.join(BASES)} into {folder}")
    else:
        PAGE.write_text(rewritten(PAGE.read_text("utf-8"), *BY_ARITHMETIC, *BY_TRACING), encoding="utf-8")
        print(f"wrote {PAGE}")
