"""What an export format is: how its files are written, and which engine proves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_cli.deploy.engines.engine import Engine
from qlora_cli.engine_environment import EngineEnvironment
from qlora_cli.model.tuned import TunedSource


@dataclass(frozen=True)
class FormatOptions:
    """What the command line adds to the name of a format."""

    quant: str | None = None
    """Type of the stored numbers, as `q4_k_m` or `w4a16`; None for the format's usual one."""

    group_size: int | None = None
    """Weights that share a scale; None for the format's usual number."""

    base_quant: str | None = None
    """Type of the base that is handed on beside an adapter; None where it is not."""


@dataclass(frozen=True)
class WriteJob:
    """One model that is to be written in a format. The tuned model is one, its base, as the yardstick, another."""

    plain: Path
    """Folder with the model in 16 or 32 bits: config, weights, tokenizer, chat template. Read only."""

    out: Path
    """Empty folder for the files of the format."""

    source: TunedSource
    calibration_rows: Sequence[Sequence[int]]
    """Token ids of rows that training saw; fixed questions where the adapter brings no data."""

    options: FormatOptions = FormatOptions()

    kept: Path | None = None
    """Folder for what every type of this model needs, made once; None where one type is written."""


@dataclass(frozen=True)
class CodesFormat:
    """How a format holds a model in integers as training had them: nothing is rounded to new codes."""

    write: Callable[[WriteJob], None]
    """Write it; `plain` of the job is then a folder in integers."""

    quant: Callable[[int], str]
    """Name of the type that holds codes of so many bits."""

    writer: EngineEnvironment | None = None
    """As `Format.writer`."""


@dataclass(frozen=True)
class Format:
    """One format of an exported model."""

    write: Callable[[WriteJob], None] | None
    """Write the model; None where the merged model itself is what is handed on.

    Raises:
        ArgumentError, ResourceError: if an option does not fit, or what writes the format is not installed.
    """

    engine: Engine
    """What opens the files, as those will who get them."""

    writer: EngineEnvironment | None = None
    """Environment of the program that writes the files; None where that is this project."""

    quants: tuple[str, ...] = ()
    """Values of `FormatOptions.quant`, the usual one first; empty where there is no choice."""

    loses_nothing: bool = False
    """No number is rounded further than in the merged model, so that the bound is the merge's."""

    write_base: Callable[[WriteJob], None] | None = None
    """Write the base that the engine opens the files on; None where they are a whole model."""

    base_quants: tuple[str, ...] = ()
    """Values of `FormatOptions.base_quant`; empty where no base can be handed on."""

    keeps_codes: bool = False
    """The merged model that is handed on, or written, is one in the integers of training."""

    codes: CodesFormat | None = None
    """How such a model is written; None where the format cannot hold one, and its weights become plain."""

    rounds_as_training: bool = False
    """The base of training has these very values already: the yardstick is the base before it was quantized."""

    smallest_first: tuple[str, ...] = ()
    """Those of `quants` that `--max-kl` tries, in the order of their size."""

    larger: tuple[str, ...] = ()
    """Those of `quants` with more bits than the usual one that are tried after it, the smallest first."""

    group_sizes: tuple[int, ...] = ()
    """Values of `FormatOptions.group_size`; empty where there is no choice."""

    check: Callable[[TunedSource, FormatOptions], None] = lambda source, options: None
    """Refuse what this format cannot hold, before anything is merged or loaded."""
