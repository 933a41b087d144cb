"""Options of `qlora export`, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from qlora_cli.choices import ExportFormat
from qlora_cli.deploy.formats.format import Format, FormatOptions
from qlora_cli.deploy.formats.gguf import UNROUNDED
from qlora_cli.deploy.formats.table import FORMATS
from qlora_cli.deploy.integers import can_keep_codes, integer_settings, stored_folder
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tuned import TunedSource


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export."""

    format: ExportFormat = "hf"
    quant: str | None = None
    """Type of the stored numbers; None for the format's usual one, or for what `max_kl` finds."""

    group_size: int | None = None
    max_kl: float | None = None
    """Bound on the mean KL in nats per token: the smallest type within it is taken, where no type is named."""

    base_quant: str | None = None
    """Hand on the base beside the adapter, in this type."""

    force: bool = False
    """Replace a model folder that is already there."""

    @property
    def of_format(self) -> FormatOptions:
        """What the format's own functions take."""
        return FormatOptions(self.quant, self.group_size, self.base_quant)

    @property
    def is_searched(self) -> bool:
        """Whether the type is to be found by measuring."""
        return self.max_kl is not None and self.quant is None and bool(FORMATS[self.format].smallest_first)


def format_for(source: TunedSource, options: ExportOptions) -> Format:
    """The format as this model takes it: a QA-LoRA run keeps its codes where the format and the options let it, and an
    adapter that comes with its base loses what the base's type loses."""
    form = FORMATS[options.format]
    if options.base_quant is not None:
        return replace(form, loses_nothing=False)
    if form.codes is None or options.is_searched or not can_keep_codes(source):
        return form
    settings = integer_settings(stored_folder(source))
    quant = form.codes.quant(settings.bits)
    if options.quant not in (None, quant) or options.group_size not in (None, settings.group_size):
        return form
    return replace(
        form,
        write=form.codes.write,
        writer=form.codes.writer,
        quants=(quant,),
        loses_nothing=True,
        keeps_codes=True,
        check=lambda source, options: None,
    )


def may_be_larger(form: Format, options: ExportOptions) -> bool:
    """Whether a type with more bits may be taken than the usual one: where neither a type nor a bound is named.

    What is rounded as training was starts from a merge that fits that type alone.
    """
    return options.quant is None and options.max_kl is None and not (form.loses_nothing or form.rounds_as_training)


def way_on(form: Format, options: ExportOptions, quant: str | None) -> str:
    """What to type where a type was written and is not near enough."""
    if options.base_quant is not None and options.base_quant not in UNROUNDED:
        return f"take a type with more bits: --base-quant {'f16' if options.base_quant == 'q8_0' else 'q8_0'}"
    rest = form.larger[form.larger.index(quant) + 1 :] if quant in form.larger else form.larger
    if form.loses_nothing or not rest:
        return "merge again with `qlora merge --force`; if it fails too, run `qlora doctor` and report this"
    if options.max_kl is not None:
        return "leave --quant out: the smallest type within --max-kl is then looked for"
    if form.rounds_as_training or quant in form.larger:
        return f"take --quant {rest[0]}"
    return f"leave --quant out: the first of {', '.join((form.quants[0], *rest))} that is near enough is then taken"


def check_options(options: ExportOptions) -> None:
    """Refuse an option that the format does not take, with the formats that do.

    Raises:
        ArgumentError: naming what fits.
    """
    form = FORMATS[options.format]
    _check_type("--quant", options.quant, options.format, lambda other: other.quants)
    if options.group_size is not None and not form.group_sizes:
        _refuse("--group-size", options.format, lambda other: bool(other.group_sizes))
    _check_type("--base-quant", options.base_quant, options.format, lambda other: other.base_quants)
    if options.max_kl is not None and not (math.isfinite(options.max_kl) and options.max_kl > 0):
        raise ArgumentError(f"--max-kl {options.max_kl} is no bound", hint="name a number above 0, such as 0.01")


def _check_type(
    option: str, value: str | None, format: ExportFormat, types_of: Callable[[Format], tuple[str, ...]]
) -> None:
    types = types_of(FORMATS[format])
    if value is None or value in types:
        return
    if types:
        raise ArgumentError(f"{option} {value} is none of {format}", hint=f"use one of {', '.join(types)}")
    _refuse(option, format, lambda other: bool(types_of(other)))


def _refuse(option: str, format: ExportFormat, takes: Callable[[Format], bool]) -> None:
    names = [f"--format {name}" for name, other in FORMATS.items() if takes(other)]
    way_on = f"; {', '.join(names)} {'takes' if len(names) == 1 else 'take'} it" if names else ""
    raise ArgumentError(f"{option} does not go with --format {format}", hint=f"leave {option} out{way_on}")
