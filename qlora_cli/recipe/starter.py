"""The commented recipe that `qlora init` writes."""

from __future__ import annotations

import os
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import get_args

from qlora_cli import console
from qlora_cli.choices import DataFormat
from qlora_cli.errors import ArgumentError
from qlora_cli.recipe.one_line import one_line
from qlora_cli.recipe.reader import NAME_PATTERN
from qlora_cli.recipe.secret_values import SECRETS_HINT
from qlora_cli.secrets import find_secret

TEMPLATE = """\
# A QLoRA run: an adapter on a base in few bits. `qlora validate {file}` checks it, `qlora train {file}` runs it.
# Keys that are left out have defaults; `qlora schema` describes every key.
{head}name: {name}                   # the run goes to runs/{name}

model:
  base_model: {base}  # Hub id or local folder{attn_implementation}{dequantize}

quantization:                  # {quantization_why}{method}{bits}{group_size}{quant_type}{double_quant}

lora:
{r}
{lora_alpha}
{lora_dropout}
  target_modules: all-linear   # the paper needs all linear layers to match full fine-tuning{use_qalora}

data:
  train: {train}  # {train_why}
  eval_fraction: 0.05          # held out, to see overfitting
{max_length}{truncation}
  packing: true                # fills rows with several documents, none of which sees another

training:
  num_train_epochs: 3          # 1 is often enough above 10,000 rows
{learning_rate}
{per_device_train_batch_size}
{gradient_accumulation_steps}
  lr_scheduler_type: cosine    # down to 0 along half a cosine; the paper holds the rate constant
  warmup_ratio: 0.03           # share of the steps
  optim: paged_adamw_8bit      # its state moves to CPU memory when the GPU is full

tracking:
  report_to: []                # metrics.jsonl is always written; add tensorboard, wandb, mlflow or trackio
"""

OPTIONAL = (
    "attn_implementation",
    "dequantize",
    "method",
    "bits",
    "group_size",
    "quant_type",
    "double_quant",
    "use_qalora",
    "truncation",
)
"""Keys that not every recipe has."""

COLUMN = 31
"""Column at which comments begin, as in the template."""


@dataclass(frozen=True)
class Choice:
    """One value, and why."""

    value: str
    why: str


@dataclass(frozen=True)
class StarterValues:
    """The values that depend on the base and the card."""

    r: Choice = Choice("16", "16 is enough for most tasks; more rank means more memory and more to overfit")
    lora_alpha: Choice = Choice("32", "the update is scaled by lora_alpha / r")
    max_length: Choice = Choice("2048", "in tokens; halve it first when memory runs out")
    learning_rate: Choice = Choice("2.0e-4", "the paper's value up to 13B; 1e-4 above")
    per_device_train_batch_size: Choice = Choice("4", "rows in one forward pass; `qlora plan` says what fits")
    gradient_accumulation_steps: Choice = Choice("4", "4 x 4 = 16 rows a step; out of memory: 2 x 8 is the same step")
    lora_dropout: Choice = Choice("0.05", "0.05 to 0.1 helps on small data")
    attn_implementation: Choice | None = None
    """Only where the base cannot do with the default."""

    dequantize: Choice | None = None
    """Only where the base is stored in a form that is unpacked as it is loaded."""

    quantization: Choice = Choice("", "leave this section out for 16-bit LoRA")
    """Of the section as a whole."""

    method: Choice | None = None
    """Only where the base is in integers."""

    bits: Choice | None = None
    """Only where the base is to be rounded to integers."""

    group_size: Choice | None = None
    """Only where the base is to be rounded to integers."""

    quant_type: Choice | None = Choice(
        "nf4", "the paper's 4-bit type (arXiv:2305.14314); int8 loses less and takes twice as much"
    )
    """None where the base is in integers."""

    double_quant: Choice | None = Choice("true", "saves 0.37 bit per parameter, about 0.3 GB at 7B")
    """None for int8, which has no constants to quantize."""

    use_qalora: Choice | None = None
    """Only where the base is in integers."""

    train: Choice | None = None
    """The source as it was found to be read, on one line; the mere path where nobody looked."""

    truncation: Choice | None = None
    """Only where rows are longer than `max_length`."""

    planned: str = ""
    """The plan with these values; the first comment says it."""


def write_starter(
    out: Path, base_model: str, data: str, *, overwrite: bool, values: StarterValues | None = None
) -> None:
    """Write a starter recipe to `out`.

    Args:
        out: file to write; its stem names the run.
        base_model: Hub id or local folder.
        data: path or Hub id of the training data.
        overwrite: replace a file that exists.
        values: chosen for a card; by default those of the schema.

    Raises:
        ArgumentError: if `out` exists or its stem cannot name a run; if a value holds a secret.
        OSError: if it cannot be written; what was there is there still.
    """
    refuse_name(out, overwrite=overwrite)
    for option, value in (("--base", base_model), ("--data", data), ("--out", str(out))):
        if kind := find_secret(value):
            raise ArgumentError(f"{option} holds a secret: {kind}", hint=SECRETS_HINT)
    write_recipe(out, starter_text(out, base_model, data, values or StarterValues()), overwrite=overwrite)


def write_recipe(out: Path, text: str, *, overwrite: bool) -> None:
    """Write a recipe's text to `out`; what was there keeps a name beside it.

    Raises:
        ArgumentError: if `out` exists and `overwrite` is not given.
        OSError: if it cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = out.with_name(f".{out.name}.new-{token_hex(8)}")
    try:
        with staged.open("x", encoding="utf-8") as file:
            file.write(text)
        if os.path.lexists(out):
            if not overwrite:
                raise _is_there(out)
            _keep(out)
        os.replace(staged, out)
    except OSError as fault:
        fault.filename = fault.filename or str(out)
        raise
    finally:
        staged.unlink(missing_ok=True)


def _keep(out: Path) -> None:
    """Give a file a second name, so that it outlives the first."""
    number = 1
    while os.path.lexists(kept := out.with_name(f"{out.name}.kept-{number}")):
        number += 1
    try:
        os.link(out, kept, follow_symlinks=False)
    except OSError:  # a file system without second names
        shutil.copy2(out, kept, follow_symlinks=False)
    console.note(f"what was in {out} is now in {kept}")


def refuse_name(out: Path, *, overwrite: bool) -> None:
    """See before any work is done that the recipe may be written.

    Raises:
        ArgumentError: if it is there already, or its stem cannot name a run.
    """
    if not NAME_PATTERN.fullmatch(out.stem):
        hint = "use letters, digits, '.', '_' and '-', for example `--out chat.yaml`"
        raise ArgumentError(f"the file name '{out.stem}' cannot name the run", hint=hint)
    if out.exists() and not overwrite:
        raise _is_there(out)


def _is_there(out: Path) -> ArgumentError:
    return ArgumentError(f"'{out}' is there already", hint="choose another --out, or write over it with --force")


def starter_text(out: Path, base_model: str, data: str, values: StarterValues) -> str:
    """The recipe as it is written."""
    chosen = {name: _line(name, choice) for name, choice in vars(values).items() if isinstance(choice, Choice)}
    optional = {name: f"\n{line}" if (line := chosen.pop(name, None)) else "" for name in OPTIONAL}
    for name in ("train", "quantization"):
        chosen.pop(name, None)
    train = values.train or Choice(one_line(data), ", ".join(get_args(DataFormat)))
    head = "".join(f"# {line}\n" for line in textwrap.wrap(values.planned, 116))
    return TEMPLATE.format(
        file=out,
        name=one_line(out.stem),
        base=one_line(base_model),
        train=train.value,
        train_why=train.why,
        quantization_why=values.quantization.why,
        head=head,
        **optional,
        **chosen,
    )


def _line(name: str, choice: Choice) -> str:
    """
    >>> _line("r", Choice("16", "enough"))
    '  r: 16                        # enough'
    """
    return f"{f'  {name}: {choice.value}':<{COLUMN - 1}} # {choice.why}"
