"""Translation of another tool's keys whose values must be read.

A handler takes a key, its value and the whole file, and yields outcomes: settings of ours, or why there are none. To
add a key whose value is ours too, a line in `foreign_keys.py` is enough; one whose value must be read gets a handler.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qlora_cli.recipe.foreign_keys import counterpart
from qlora_cli.recipe.foreign_outcome import Config, Handler, Outcome, coerced, is_on, refuse
from qlora_cli.recipe.json_schema import all_keys, field_at, options_of

SECTIONS = ("model", "quantization", "lora", "training", "eval")
"""Sections where a key of the same name means the same; names in `data` and `tracking` are too common for that."""

UNKNOWN = "not known to qlora"


def same_key(key: str, tool: str = "") -> str:
    """Our key for one whose values are ours, by the table of foreign keys or of the same name; empty for others.

    >>> same_key("lora_rank"), same_key("r"), same_key("rank_pattern")
    ('lora.r', 'lora.r', '')
    """
    ours = counterpart(key, tool)
    if ours and " " not in ours and not ours.startswith(("data.train", "data.eval")):
        return ours
    known = [full for full in all_keys() if full.count(".") == 1 and full.endswith(f".{key}")]
    known = [
        full for full in known if full.partition(".")[0] in SECTIONS or full in ("data.packing", "data.max_length")
    ]
    return known[0] if len(known) == 1 else ""


def copy_to(ours: str) -> Handler:
    """A key whose values are ours."""

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        yield Outcome(key, value, {ours: coerced(ours, value)})

    return handle


def words(ours: str, meant: dict[str, Any]) -> Handler:
    """A key with values of its own; those that are not in the table are kept, and checked as ours."""

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        yield Outcome(key, value, {ours: meant.get(str(value).lower(), coerced(ours, value))})

    return handle


def switch(on: dict[str, Any], off: str = "") -> Handler:
    """A key that sets something where it is on, and is said to need nothing, or `off`, where it is not."""

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        if is_on(value):
            yield Outcome(key, value, dict(on))
        else:
            yield Outcome(key, value, why=off or "off here too", is_needless=True)

    return handle


def needless(why: str) -> Handler:
    """A key that loses nothing where it is left out."""

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        yield Outcome(key, value, why=why, is_needless=True)

    return handle


def lost(why: str) -> Handler:
    """A key whose wish is not met here; one that is off wishes for nothing."""

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        is_off = value is False or str(value).lower() in ("false", "no", "off")
        yield Outcome(key, value, why="off here too" if is_off else why, is_needless=is_off)

    return handle


def only(fine: tuple[str, ...], why: str) -> Handler:
    """A key that must have one of some values: another value is another kind of training.

    Raises:
        RecipeError: for the others.
    """

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        if str(value).lower() not in fine:
            raise refuse(key, value, why)
        yield Outcome(key, value, why="every run is of this kind", is_needless=True)

    return handle


def epochs(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """Passes over the data, where `max_steps` does not end the run first."""
    max_steps = coerced("training.max_steps", config.get("max_steps"))
    if isinstance(max_steps, int) and max_steps > 0:
        yield Outcome(key, value, why=f"'max_steps: {max_steps}' ends the run", is_needless=True)
    else:
        yield from copy_to("training.num_train_epochs")(key, value, config)


def max_steps(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """Steps; -1 stands for no limit."""
    steps = coerced("training.max_steps", value)
    if isinstance(steps, int) and steps <= 0:
        yield Outcome(key, value, why="no limit", is_needless=True)
    else:
        yield Outcome(key, value, {"training.max_steps": steps})


def warmup_steps(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """A share where the number is below 1 or the length is known; here the warm-up is always a share."""
    warmup = coerced("training.warmup_ratio", value)
    total = coerced("training.max_steps", config.get("max_steps"))
    if isinstance(warmup, int | float) and 0 <= warmup < 1:
        yield Outcome(key, value, {"training.warmup_ratio": float(warmup)})
    elif isinstance(warmup, int | float) and isinstance(total, int) and 0 < warmup < total:
        yield Outcome(key, value, {"training.warmup_ratio": round(warmup / total, 6)})
    else:
        yield Outcome(key, value, why="the warm-up is a share of the steps here: 'training.warmup_ratio'")


def share_of_rows(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """Held-out rows: a share below 1, or a number of rows."""
    share = coerced("data.eval_fraction", value)
    if share == 0:
        yield Outcome(key, value, why="no rows are held out", is_needless=True)
    elif isinstance(share, int | float) and share >= 1:
        yield Outcome(key, value, why="a number of rows; write a share of them: 'data.eval_fraction'")
    else:
        yield Outcome(key, value, {"data.eval_fraction": share})


def holds_out(config: Config) -> bool:
    """Whether the file has rows to evaluate on."""
    shares = (coerced("data.eval_fraction", config.get(key)) for key in ("val_set_size", "val_size"))
    named = (config.get(key) for key in ("test_datasets", "eval_dataset", "dataset_test_split"))
    mixture = config.get("dataset_mixture")
    is_split = isinstance(mixture, dict) and bool(mixture.get("test_split_size"))
    return is_split or any(isinstance(share, int | float) and share > 0 for share in shares) or any(named)


NOTHING_HELD_OUT = "no rows are held out"


def interval(kind: str) -> Handler:
    """`save_steps` and `eval_steps`: only a whole number of steps, and only with that strategy."""
    section = {"save": "training", "eval": "eval"}[kind]

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        strategy = config.get(f"{kind}_strategy") or config.get("evaluation_strategy" if kind == "eval" else "")
        steps = coerced(f"{section}.{kind}_steps", value)
        if kind == "eval" and not holds_out(config):
            yield Outcome(key, value, why=NOTHING_HELD_OUT, is_needless=True)
        elif strategy not in (None, "steps"):
            yield Outcome(key, value, why=f"without effect beside '{kind}_strategy: {strategy}'", is_needless=True)
        elif not isinstance(steps, int) or steps < 1:
            yield Outcome(key, value, why=f"a share of the run; write a number: '{section}.{kind}_steps'")
        else:
            yield Outcome(key, value, {f"{section}.{kind}_strategy": "steps", f"{section}.{kind}_steps": steps})

    return handle


def strategy(kind: str) -> Handler:
    """`save_strategy` and `eval_strategy`; the interval that the Trainer would take is written out."""
    section = {"save": "training", "eval": "eval"}[kind]

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        if kind == "eval" and not holds_out(config):
            yield Outcome(key, value, why=NOTHING_HELD_OUT, is_needless=True)
            return
        word = {"false": "no"}.get(str(value).lower(), str(value))
        settings: dict[str, Any] = {f"{section}.{kind}_strategy": word}
        if word == "steps" and config.get(f"{kind}_steps") is None:
            default = config.get("logging_steps") if kind == "eval" else None
            settings[f"{section}.{kind}_steps"] = coerced("training.logging_steps", default or 500)
        yield Outcome(key, value, settings)

    return handle


def times_an_epoch(kind: str) -> Handler:
    """`saves_per_epoch` and `evals_per_epoch`: once is a strategy here, more often needs the number of steps."""
    ours = {"save": "training.save_strategy", "eval": "eval.eval_strategy"}[kind]
    steps = ours.replace("strategy", "steps")

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        times = coerced("lora.r", value)
        if kind == "eval" and not holds_out(config):
            yield Outcome(key, value, why=NOTHING_HELD_OUT, is_needless=True)
        elif times == 0:
            yield Outcome(key, value, {ours: "no"})
        elif times == 1:
            yield Outcome(key, value, {ours: "epoch"})
        else:
            yield Outcome(key, value, {ours: "epoch"}, why=f"once an epoch; for more write '{steps}' with `steps`")

    return handle


def trackers(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """`report_to`: one name, several, `none` or `all`."""
    names = [str(name).lower() for name in (value if isinstance(value, list) else [value])]
    [listed] = options_of(field_at(("tracking", "report_to")) or {})
    known = [name for name in names if name in listed["items"]["enum"]]
    others = [name for name in names if name not in (*known, "none", "false", "[]")]
    why = f"of these trackers none is here: {', '.join(others)}" if others else ""
    if known:
        yield Outcome(key, value, {"tracking.report_to": known}, why)
    else:
        yield Outcome(key, value, why=why or "metrics.jsonl is always written", is_needless=not others)


def precision(dtype: str) -> Handler:
    """`bf16` and `fp16`."""
    other = {"bfloat16": "fp16", "float16": "bf16"}[dtype]

    def handle(key: str, value: Any, config: Config) -> Iterator[Outcome]:
        says_more = any(config.get(name) for name in ("torch_dtype", "dtype", "pure_bf16", "bfloat16", "float16"))
        if str(value).lower() == "auto":
            yield Outcome(key, value, {"model.dtype": "auto"})
        elif is_on(value) or str(value).lower() == "full":
            yield Outcome(key, value, {"model.dtype": dtype})
        elif dtype == "bfloat16" and not config.get(other) and not says_more:
            yield Outcome(key, value, {"model.dtype": "float32"})
        else:
            yield Outcome(key, value, why="another key sets the precision", is_needless=True)

    return handle


def activations(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """`gradient_checkpointing`, which axolotl lets mean offloading too."""
    if str(value).lower() in ("offload", "offload_disk"):
        yield Outcome(key, value, {"training.gradient_checkpointing": True, "training.activation_offloading": True})
    else:
        yield from copy_to("training.gradient_checkpointing")(key, value, config)


def targets(key: str, value: Any, config: Config) -> Iterator[Outcome]:
    """Names of modules; a pattern of names has no counterpart."""
    if is_on(config.get("lora_target_linear")):
        yield Outcome(key, value, why="'lora_target_linear: true' takes every linear layer", is_needless=True)
    elif str(value) in ("all", "all-linear") or value in (["all"], ["all-linear"]):
        yield Outcome(key, value, {"lora.target_modules": "all-linear"})
    elif isinstance(value, str) and any(sign in value for sign in "\\[](){}*+?|^$"):
        yield Outcome(key, value, why="a pattern; list names in 'lora.target_modules' (all-linear is used)")
    else:
        yield Outcome(key, value, {"lora.target_modules": coerced("lora.target_modules", value)})
