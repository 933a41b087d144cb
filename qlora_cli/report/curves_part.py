"""The curves of a run: losses, learning rate, gradient norm, speed, memory."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_cli.constants import GIB
from qlora_cli.report.axis import figure
from qlora_cli.report.curve import Curve, is_number
from qlora_cli.report.html import missing
from qlora_cli.report.plot import Level, Plot, Series, draw
from qlora_cli.report.record import RunRecord


def curves(record: RunRecord) -> str:
    """All drawings; a sentence where no step was done."""
    if not record.lines:
        return missing("No step is recorded yet: metrics.jsonl is empty or missing.")
    return f'<div class="grid-of">{"".join(draw(plot) for plot in plots(record))}</div>'


def plots(record: RunRecord) -> Iterator[Plot]:
    """One drawing a quantity, in the order in which they are looked at."""
    yield loss_plot(record.curve("loss"))
    yield eval_plot(record)
    yield Plot("Learning rate", "", [Series("learning rate", record.curve("learning_rate"))], from_zero=True)
    yield _norm_plot(record)
    speed = record.curve("tokens_per_second")
    mean = f"Median {figure(sorted(speed.values)[len(speed) // 2])} tokens/s." if len(speed) else ""
    yield Plot("Speed", "tokens a second", [Series("speed", speed)], from_zero=True, notes=[mean] if mean else [])
    yield _memory_plot(record)


def loss_plot(losses: Curve) -> Plot:
    """Each step's loss, faint, and their moving mean."""
    smooth = losses.smoothed()
    is_smoothed = smooth.values != losses.values
    series = [Series("smoothed", smooth)]
    if is_smoothed:
        series = [Series("loss", losses, look="faint"), *series]
    notes = [f"{losses.num_missing:,} losses were not finite."] if losses.num_missing else []
    return Plot("Training loss", "nats a token", series, notes=notes, format=three_digits)


def eval_plot(record: RunRecord) -> Plot:
    """The loss on held-out rows; the lowest is marked, and which step the adapter is of is said."""
    curve = record.curve("eval_loss")
    if not len(curve):
        return Plot("Eval loss", "nats a token", [], notes=["No rows are held out, or none was measured yet."])
    step, value = curve.lowest
    notes = []
    adapter_step = record.manifest.get("adapter_step")
    if is_number(adapter_step):
        notes.append(f"The adapter is that of step {adapter_step:,.0f}.")
    stop = record.section("early_stop")
    if is_number(stop.get("step")):
        notes.append(f"Stopped early at step {stop['step']:,}.")
    return Plot(
        "Eval loss",
        "nats a token, held-out rows",
        [Series("eval loss", curve, 1, look="dotted")],
        marked=(step, value, f"lowest: {value:.3f} at {step:,}"),
        notes=notes,
        format=three_digits,
    )


def _norm_plot(record: RunRecord) -> Plot:
    norms = record.curve("grad_norm")
    limit = record.number("training.max_grad_norm")
    notes = []
    if limit and len(norms):
        clipped = sum(norm > limit for norm in norms.values)
        notes.append(f"Clipped at {figure(limit)} in {clipped / len(norms):.0%} of the steps.")
    levels = [Level("clipped at", limit)] if limit and len(norms) and max(norms.values) > limit / 4 else []
    return Plot("Gradient norm", "before clipping", [Series("norm", norms, 2)], levels, notes=notes)


def _memory_plot(record: RunRecord) -> Plot:
    peak = record.curve("peak_memory_bytes").scaled(1 / GIB)
    memory = record.section("memory")
    predicted, measured = (memory.get(name) for name in ("predicted_bytes", "measured_bytes"))
    predicted, measured = (value if isinstance(value, dict) else {} for value in (predicted, measured))
    planned, allocated, grown = predicted.get("allocated"), measured.get("allocated"), measured.get("resident")
    levels, notes = [], []
    if is_number(planned):
        levels = [Level("planned", planned / GIB)]
        if is_number(allocated):
            notes = [f"Planned {planned / GIB:.2f} GiB, measured {allocated / GIB:.2f} GiB."]
        elif is_number(grown):
            notes = [
                f"The whole process, libraries included; training added {grown / GIB:.2f} GiB, "
                f"and {planned / GIB:.2f} GiB of tensors were planned."
            ]
    elif len(peak):
        notes = ["What was planned is not recorded."]
    series = [Series("peak", peak, 3)]
    return Plot("Peak memory", "GiB", series, levels, from_zero=True, notes=notes, format=lambda value: f"{value:.2f}")


def three_digits(value: float) -> str:
    """A loss with three decimals, as a person compares them; a large one shorter.

    >>> three_digits(1.5), three_digits(1234.5)
    ('1.500', '1,234')
    """
    return f"{value:.3f}" if abs(value) < 100 else figure(value)
