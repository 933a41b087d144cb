"""A plan as a person reads it: the result, the budget with bars, then time, disk and data."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from qlora_cli import console
from qlora_cli.console import size_in_words
from qlora_cli.constants import GIB, MIB
from qlora_cli.plan.figures import duration, in_gib, in_mib, size, two_digits
from qlora_cli.plan.fit import UNITS, Fit
from qlora_cli.plan.machine.calibration import Overheads
from qlora_cli.plan.report import PlanReport
from qlora_cli.plan.savings import MemorySaving
from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.progress import drawn_bar
from qlora_cli.recipe.summary import summarize

BAR_WIDTH = 32
"""With the names of the lines and the figures it fits into 80 columns."""

NARROW = 0.05
"""Share of the memory below which what is left is no more than the estimates in the budget may be wrong by."""

SMALL = 0.005
"""Units below which a line of the budget is added to others; they would all be zeros."""


def show_plan(report: PlanReport) -> None:
    """Print the report."""
    recipe = report.request.recipe
    console.result(verdict(report))
    console.result("")
    unit = "GiB" if report.device_bytes >= GIB else "MiB"
    console.table(("memory at the peak", unit, _bar_title(report)), _bill_rows(report, unit))
    console.result("")
    told = summarize(recipe)
    facts = {
        "base": told["base"],
        "method": told["method"],
        "rows": _rows(report),
        **_facts(report),
    }
    console.facts(facts)
    for note in report.bill.notes:
        console.result("")
        console.result(Text.assemble(("note: ", "yellow"), note))


def _rows(report: PlanReport) -> str:
    training, asked = report.request.recipe.training, report.asked.training
    num_gpus = report.request.device.num_gpus
    text = f"{training.rows_at_once} of {report.asked.data.max_length:,} tokens in a pass, "
    if asked.per_device_train_batch_size == "auto":
        passes = "1 pass" if training.num_passes == 1 else f"{training.num_passes} passes"
        text += f"the {asked.rows_per_step} of a step in {passes} (auto)"
    else:
        text += f"{training.num_passes} times a step"
    return text if num_gpus == 1 else f"{text}, on each of {num_gpus} GPUs: {report.rows_per_step:,} a step"


def verdict(report: PlanReport) -> Text:
    """One line: whether it fits, in what, and where the peak is."""
    num_gpus = report.request.device.num_gpus
    needed = size(report.device_bytes)
    each = f", on each of {num_gpus} GPUs" if num_gpus > 1 else ""
    at = f"the peak falls in {report.bill.peak.phase}"
    memory = report.target.memory_bytes
    if memory is None:
        return Text(
            f"{needed} on {report.target.name}{each}; {at} (name a card: --gpu 4090, or its memory: --memory-gb 24)"
        )
    of = size(memory) + (f" of {report.target.name}" if not report.target.name.endswith("GiB") else "")
    of += each
    if report.fits and memory - report.device_bytes < NARROW * memory:
        return Text.assemble(("fits narrowly", "bold yellow"), f": {needed} of the {of}; {at}")
    if report.fits:
        return Text.assemble(("fits", "bold green"), f": {needed} of the {of}; {at}")
    missing = size(report.device_bytes - memory)
    return Text.assemble(("does not fit", "bold red"), f": {needed}, {missing} more than the {of}; {at}")


def _bar_title(report: PlanReport) -> str:
    return "of the peak" if report.target.memory_bytes is None else "of what a process can have"


def _bill_rows(report: PlanReport, unit: str) -> list[tuple[str, str, str]]:
    whole = report.target.memory_bytes or report.device_bytes
    unit_bytes, shown = (GIB, in_gib) if unit == "GiB" else (MIB, in_mib)
    small = (SMALL if unit == "GiB" else 10 * SMALL) * unit_bytes  # what the decimals show as zero
    rows = [(name, num_bytes) for name, num_bytes in report.lines if num_bytes >= small]
    if rest := sum(num_bytes for _, num_bytes in report.lines if num_bytes < small):
        rows.append((f"each below {small / unit_bytes:g} {unit}", rest))
    rows.append(("all", report.device_bytes))
    drawn = [(name, "<" * (0 < n < small) + shown(max(n, small)), _bar(n / whole)) for name, n in rows]
    return [*drawn, ("free", shown(whole - report.device_bytes), "")] if report.fits else drawn


def _bar(share: float) -> str:
    """A bar; one that is longer than there is room ends in dots."""
    return drawn_bar(min(1.0, share), BAR_WIDTH) + ("…" if share > 1 else "")


def _facts(report: PlanReport) -> dict[str, str]:
    facts, disk = report.bill.facts, report.disk
    num_all = facts.num_base + facts.num_trained
    told = {"trained": f"{facts.num_trained:,} parameters, {facts.trained_share:.2%} of {num_all:,}"}
    if report.bill.paged_bytes:
        told["paged"] = f"{size(report.bill.paged_bytes)} optimizer state, in host memory when the GPU is full"
    if report.request.device.num_gpus > 1:
        told["GPUs"] = _gpus(report)
    if report.request.device.overheads is not None:
        told["measured"] = f"CUDA context, cuBLAS workspaces and rate, {report.request.device.overheads.source}"
    work = report.workload
    if work is None:
        told["data"] = f"steps are not known: {report.why_no_workload}"
    else:
        filled = f", {work.fill:.1%} of their places filled" if report.request.recipe.data.packing else ""
        told["data"] = f"{work.num_rows:,} rows and {work.num_tokens:,} tokens an epoch{filled}"
        told["steps"] = f"{work.num_steps:,}"
    told["time"] = _time(report)
    told["disk"] = (
        f"adapter {size_in_words(disk.adapter_bytes)}, checkpoints {size_in_words(disk.checkpoints_bytes)}, "
        f"merged model {size_in_words(disk.merged_bytes)}"
    )
    if disk.integer_bytes:
        place = "in the run" if report.asked.is_base_calibrated else "once in the cache"
        told["disk"] += f"; the base in integers, {place}, {size_in_words(disk.integer_bytes)}"
    return told


def _gpus(report: PlanReport) -> str:
    """Effects of several GPUs on the memory of each."""
    sums = report.bill.trace.largest.get(MemoryKind.GRADIENT_SUMS, 0)
    is_at_peak = MemoryKind.GRADIENT_SUMS in report.bill.peak.by_kind
    return (
        f"each holds the whole model; gradients are summed in {size(sums)} more after the backward pass, "
        f"{'where the peak falls' if is_at_peak else 'below the peak'}; what NCCL takes is not in the budget"
    )


def _time(report: PlanReport) -> str:
    pace = report.pace
    if pace is None:
        return "no estimate: it needs a card with a known rate (--gpu) and 16-bit computation"
    num_gpus = report.request.device.num_gpus
    together = "" if num_gpus == 1 else f" on {num_gpus} GPUs"
    rate = f"about {two_digits(pace.tokens_per_second)} tokens/s{together}"
    text = f"estimate: {rate}, {duration(pace.seconds_per_step)} a step"
    if report.seconds is not None:
        text += f", {duration(report.seconds)} in all"
    unmeasured = "" if num_gpus == 1 else "; without the time to sum gradients"
    return f"{text} ({two_digits(pace.operations.total / 1e9)} GFLOP a token at {pace.rate}{unmeasured})"


def show_fits(fits: Sequence[Fit], report: PlanReport) -> None:
    """Print the largest settings that fit, each with all else unchanged, and how far they were searched."""
    console.result("")
    console.result(Text(f"largest that fits in {report.target.name}, each alone", style="bold"))
    for fit in fits:
        _show_change(_fit_in_words(fit), fit.override)


def _fit_in_words(fit: Fit) -> str:
    """
    >>> _fit_in_words(Fit("lora.r", 512, 3 * 2**30, {}, most=512))
    'lora.r 512: takes 3.00 GiB; not searched beyond 512'
    >>> _fit_in_words(Fit("data.max_length", None, 3 * 2**30, {}, most=512))
    'data.max_length: not even 128 fits, which takes 3.00 GiB'
    """
    unit = UNITS[fit.key]
    if fit.value is None:
        return f"{fit.key}: not even {unit} fits, which takes {size(fit.num_bytes)}"
    steps = "" if unit == 1 else f" in steps of {unit}"
    searched = f"not searched beyond {fit.most:,}" if fit.value == fit.most else f"searched up to {fit.most:,}{steps}"
    return f"{fit.key} {fit.value:,}: takes {size(fit.num_bytes)}; {searched}"


def show_knobs(savings: Sequence[MemorySaving], report: PlanReport) -> None:
    """Print what each change saves when it alone is made, and whether the plan fits then."""
    room = (report.target.memory_bytes or 0) - report.device_bytes
    console.result("")
    if not savings:
        console.result("no change of a setting saves memory")
        return
    console.result(Text("what saves memory, each alone", style="bold"))
    for saving in savings:
        fits = "fits then" if room + saving.saved_bytes >= 0 else "does not fit then"
        _show_change(f"{saving.what}: {size(saving.saved_bytes)} less, {fits}", saving.override)


def _show_change(what: str, override: str) -> None:
    """A change in words, and below it what to add to the command, in lines that can be pasted."""
    width = console.out.width
    for line in textwrap.wrap(what, max(width - 2, 20), subsequent_indent="  "):
        console.result(f"  {line}")
    for line in pasteable(override, width - 4) if override else ():
        console.result(f"    {line}")


def pasteable(override: str, width: int) -> list[str]:
    """Options in one line, or where that is too long each in its own, all but the last ending in a backslash.

    >>> pasteable("--set lora.r=8 --set data.packing=true", 30)
    ['--set lora.r=8 \\\\', '--set data.packing=true']
    """
    if len(override) <= width:
        return [override]
    *first, last = re.split(r" (?=--set )", override)
    return [*(f"{option} \\" for option in first), last]


def show_overheads(overheads: Overheads, path: Path) -> None:
    """Print what a calibration measured and where it is kept."""
    console.facts(
        {
            "CUDA context": f"{size(overheads.context_bytes)}, with what the driver and the screen take",
            "cuBLAS": f"{size(overheads.cublas_bytes)} of workspaces",
            "memory": size(overheads.memory_bytes),
            "rate": f"{overheads.reached_tflops:,.1f} TFLOPS in a short NF4 training step",
            "kept in": str(path),
        },
        title=f"{overheads.gpu}, driver {overheads.driver}, torch {overheads.torch}",
    )
