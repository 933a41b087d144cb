"""Advice read off the curves of a run. Each rule is a pure function: figures in, advice or None out."""

from __future__ import annotations

from statistics import median

from qlora_cli.report.advice.advice import Advice, Change, Window, noise_between, rounded, window
from qlora_cli.report.axis import figure
from qlora_cli.report.curve import Curve

MIN_POINTS = 20
"""Of a training loss: fewer say nothing about a trend."""

USUAL_RATE = 2e-4
"""Of the QLoRA paper for models of 7B and 13B (Dettmers et al. 2023, arXiv:2305.14314, table 9)."""

LOW_RATE = 1e-4
"""The paper's rate for 33B and 65B, its lowest."""

SPIKE_WINDOW = 16
MIN_SPIKES = 3
SPIKE_DEVIATIONS = 6.0
SPIKE_SHARE = 0.25
"""A spike is above the median of the losses before it by six deviations (1.48 MAD) and by a quarter of it."""

RISE = 0.05
"""Share by which the loss at the end is above that at the start of a run that diverged."""

SMALL_FALL = 0.03
EVAL_RISE = 0.02
"""Share by which an eval loss above its lowest counts: less comes and goes between evaluations."""

EVAL_FALL = 0.01
"""Share by which an eval loss below the first one counts as learning."""

STILL_FALLING = 0.1
"""Share of the whole fall that belongs to the last third of a run that was too short."""

MANY_EPOCHS = 3.0
WIDE_GAP = 0.25
"""Share of the eval loss by which the training loss is below it where rows are learned by heart."""


def ends_of(losses: Curve) -> tuple[Window, Window]:
    """The first and the last tenth of a curve, of three values at least."""
    width = max(3, len(losses) // 10)
    return window(losses.values[:width]), window(losses.values[-width:])


def spikes(losses: Curve) -> list[int]:
    """Steps whose loss stands out above the steps before.

    >>> spikes(Curve(tuple(range(1, 41)), (1.0, 1.1) * 15 + (4.0,) + (1.0, 1.1) * 4 + (1.0,)))
    [31]
    """
    found = []
    for place in range(SPIKE_WINDOW, len(losses)):
        before = losses.values[place - SPIKE_WINDOW : place]
        middle = median(before)
        deviation = 1.4826 * median(abs(value - middle) for value in before)
        if losses.values[place] - middle > max(SPIKE_DEVIATIONS * deviation, SPIKE_SHARE * abs(middle)):
            found.append(losses.steps[place])
    return found


def is_diverged(losses: Curve) -> bool:
    """Whether the loss ended above its start, by more than noise."""
    if len(losses) < MIN_POINTS:
        return False
    first, last = ends_of(losses)
    return last.mean - first.mean > max(noise_between(first, last), RISE * first.mean)


def rate_too_high(
    losses: Curve, norms: Curve, learning_rate: float | None, warmup_ratio: float | None
) -> Advice | None:
    """Divergence, spikes, or losses that are no numbers.

    Args:
        losses: training loss.
        norms: gradient norm before clipping.
        learning_rate: its peak.
        warmup_ratio: share of the steps in which it rises.
    """
    seen = spikes(losses) if len(losses) >= MIN_POINTS else []
    told = []
    if losses.num_missing:
        told.append(f"{losses.num_missing:,} losses are not finite")
    if diverged := is_diverged(losses):
        first, last = ends_of(losses)
        told.append(f"the training loss rose from {first.mean:.3f} (first tenth) to {last.mean:.3f} (last tenth)")
    if len(seen) >= MIN_SPIKES:
        told.append(f"{len(seen)} spikes of the loss, the first at step {seen[0]:,}")
    if not told or learning_rate is None:
        return None
    if len(norms) and (highest := max(norms.values)) > 10 * median(norms.values):
        told.append(f"gradient norm up to {figure(highest)}, {figure(median(norms.values))} at the median")
    changes = [Change("training.learning_rate", rounded(learning_rate / (10 if diverged else 3)))]
    if not warmup_ratio:
        changes.append(Change("training.warmup_ratio", 0.03))
    return Advice(
        "The learning rate is too high",
        f"{'; '.join(told)}, at a peak rate of {figure(learning_rate)}.",
        "A lower peak, reached gradually.",
        changes,
    )


def no_convergence(losses: Curve, eval_losses: Curve, learning_rate: float | None) -> Advice | None:
    """A training loss that did not fall by more than its noise, and did not diverge either.

    With few rows a step the noise is wide; an eval loss, which is of the same rows each time, sees a smaller fall.
    """
    if len(losses) < MIN_POINTS or learning_rate is None or is_diverged(losses):
        return None
    first, last = ends_of(losses)
    noise = noise_between(first, last)
    if first.mean - last.mean > noise or len(spikes(losses)) >= MIN_SPIKES:
        return None
    if len(eval_losses) > 1 and eval_losses.values[0] - eval_losses.lowest[1] > EVAL_FALL * eval_losses.values[0]:
        return None
    higher = USUAL_RATE if learning_rate < LOW_RATE else 3 * learning_rate
    return Advice(
        "The training loss did not fall",
        f"{first.mean:.3f} in the first tenth of the steps, {last.mean:.3f} in the last, and {noise:.3f} is noise.",
        "A higher rate shows whether there is something to learn; then look at the rows: `qlora data show` prints "
        "what is trained.",
        [Change("training.learning_rate", rounded(higher))],
    )


def rate_too_low(losses: Curve, learning_rate: float | None) -> Advice | None:
    """A loss that falls all the time and hardly at all, at a rate below what is usual."""
    if len(losses) < MIN_POINTS or learning_rate is None or learning_rate >= LOW_RATE:
        return None
    first, last = ends_of(losses)
    fall = first.mean - last.mean
    if not noise_between(first, last) < fall < SMALL_FALL * first.mean:
        return None
    return Advice(
        "The learning rate is too low",
        f"The training loss fell by {fall / first.mean:.1%} in {losses.steps[-1]:,} steps ({first.mean:.3f} to "
        f"{last.mean:.3f}) at a peak rate of {figure(learning_rate)}.",
        "The QLoRA paper trains adapters at 1e-4 to 2e-4, far above rates for full fine-tuning.",
        [Change("training.learning_rate", USUAL_RATE)],
    )


def overfitting(losses: Curve, eval_losses: Curve, *, keeps_best: bool, patience: float | None) -> Advice | None:
    """An eval loss that rises while the training loss falls.

    Args:
        losses: training loss.
        eval_losses: on held-out rows.
        keeps_best: the adapter is already that of the lowest eval loss.
        patience: evaluations without a new lowest after which the run ends; None for no such rule.
    """
    if len(eval_losses) < 3 or len(losses) < MIN_POINTS:
        return None
    step, lowest = eval_losses.lowest
    rise = eval_losses.last - lowest
    smooth = losses.smoothed()
    at_best = [value for at, value in zip(smooth.steps, smooth.values, strict=True) if at <= step]
    is_learning = bool(at_best) and smooth.last < at_best[-1]
    if rise <= EVAL_RISE * lowest or not is_learning:
        return None
    changes = [] if keeps_best else [Change("training.load_best_model_at_end", True)]
    if patience is None:
        changes.append(Change("training.early_stopping_patience", 3))
    changes = changes or [Change("training.max_steps", step), Change("lora.lora_dropout", 0.1)]
    return Advice(
        "Overfitting",
        f"The eval loss was lowest at step {step:,} ({lowest:.3f}) and is {eval_losses.last:.3f} at step "
        f"{eval_losses.steps[-1]:,}, while the training loss fell from {at_best[-1]:.3f} to {smooth.last:.3f}.",
        "Keep the adapter of the best step, and stop once it no longer improves.",
        changes,
    )


def data_too_small(losses: Curve, eval_losses: Curve, epochs: float | None, num_rows: int | None) -> Advice | None:
    """Rows that were seen often, and are known far better than held-out ones."""
    if len(losses) < MIN_POINTS or not len(eval_losses) or epochs is None or num_rows is None:
        return None
    known, unseen = losses.smoothed().last, eval_losses.last
    if epochs < MANY_EPOCHS or unseen - known < WIDE_GAP * unseen:
        return None
    return Advice(
        "Too little data",
        f"{num_rows:,} training rows were seen {epochs:.1f} times each: their loss is {known:.3f}, that of held-out "
        f"rows {unseen:.3f}.",
        "Add rows; until then, see them less often and drop out more.",
        [
            Change("data.train", f"more than {num_rows:,} rows"),
            Change("training.num_train_epochs", 2),
            Change("lora.lora_dropout", 0.1),
        ],
    )


def too_few_steps(losses: Curve, eval_losses: Curve, max_steps: int | None, epochs: float | None) -> Advice | None:
    """A run that is over and was still learning: a good part of the fall came in its last third.

    Args:
        losses: training loss.
        eval_losses: on held-out rows; where there are any, the last must be the lowest.
        max_steps: steps of the run.
        epochs: passes over the data.
    """
    if len(losses) < MIN_POINTS or max_steps is None or is_diverged(losses):
        return None
    first, last = ends_of(losses)
    place = len(losses) * 2 // 3
    width = max(3, len(losses) // 10)
    before = window(losses.values[place - width : place])
    late = before.mean - last.mean
    if late < max(noise_between(before, last), STILL_FALLING * (first.mean - last.mean)):
        return None
    told = ""
    if len(eval_losses):
        if eval_losses.lowest[0] != eval_losses.steps[-1]:
            return None
        told = f", and the last eval loss is the lowest ({eval_losses.last:.3f})"
    longer = Change("training.max_steps", 2 * max_steps)
    if epochs is not None and epochs >= 1:
        longer = Change("training.num_train_epochs", rounded(2 * epochs))
    return Advice(
        "Too few steps",
        f"The training loss was still falling: {before.mean:.3f} at two thirds of the run, {last.mean:.3f} at its end, "
        f"{late / (first.mean - last.mean):.0%} of the whole fall{told}.",
        "Twice as long; the learning rate then comes down later too.",
        [longer],
    )
