"""One model written in one type and opened, or in several types until one is near enough."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from qlora_cli import console
from qlora_cli.deploy.engines.engine import Answers
from qlora_cli.deploy.export_options import ExportOptions
from qlora_cli.deploy.export_proof import Proof, prove
from qlora_cli.deploy.export_reference import Reference
from qlora_cli.deploy.formats.format import Format, FormatOptions, WriteJob
from qlora_cli.errors import ArgumentError, NumericError
from qlora_cli.model.tuned import TunedSource
from qlora_cli.progress import progress


@dataclass(frozen=True)
class Attempts:
    """What every attempt starts from."""

    source: TunedSource
    form: Format
    options: ExportOptions
    reference: Reference
    plain: Path
    """Folder of the merged model."""

    max_kl_of_merge: float
    scratch: Path
    """Folder for what is needed on the way."""

    is_merged_anew: bool
    """False where `plain` is the run's merged model, or a copy of it."""

    version: str | None
    """Of the format's engine; None where it is not installed. It is asked once: the answer takes a process."""

    base: Path | None = None
    """Folder of the base without the adapter, as the yardstick; None where the format rounds nothing."""


@dataclass(frozen=True)
class Attempt:
    """One type of numbers, and what the engine made of it."""

    quant: str | None
    num_bytes: int
    proof: Proof | None
    """None where the engine is not installed."""


def attempt_export(attempts: Attempts, out: Path) -> Attempt:
    """Write the model in the type that the options name, and open it where the engine is there.

    Args:
        attempts: model, yardstick and format.
        out: an empty folder; of a plain format, the folder with the merged model.
    """
    _write(attempts, attempts.plain, out, attempts.options.of_format)
    return _opened(attempts, out)


def _opened(attempts: Attempts, out: Path) -> Attempt:
    """What the engine, where it is there, makes of the files in `out`."""
    form, options = attempts.form, attempts.options.of_format
    quant = options.quant or next(iter(form.quants), None)
    if attempts.version is None:
        return Attempt(quant, _num_bytes(out), None)
    base, answers = _answers_of_base(attempts, options), form.engine.ask(out, attempts.reference.questions)
    name = f"{form.engine.name} {attempts.version}"
    proof = prove(name, answers, attempts.reference, base, attempts.max_kl_of_merge)
    asked = attempts.options.max_kl
    return Attempt(quant, _num_bytes(out), proof if asked is None else replace(proof, max_kl=asked))


def usual_or_larger(attempts: Attempts, out: Path) -> tuple[list[Attempt], Attempt]:
    """Write the usual type; where the engine finds it further from the trained model than allowed, the next larger.

    Returns:
        What was passed over, and the last attempt, whose files are in `out`. None may be near enough.
    """
    attempt, passed = attempt_export(attempts, out), list[Attempt]()
    for quant in attempts.form.larger:
        options = replace(attempts.options, quant=quant)
        proof = attempt.proof
        if proof is None or proof.is_within or not _is_taken(attempts, options):
            break
        console.warn(
            f"{attempt.quant} is not near enough to the trained model: mean KL {proof.agreement.mean_kl:.3g}, and "
            f"{proof.max_kl:.3g} is allowed; {quant} is tried"
        )
        passed.append(attempt)
        _empty(out)
        attempt = attempt_export(replace(attempts, options=options), out)
    return passed, attempt


def _is_taken(attempts: Attempts, options: ExportOptions) -> bool:
    """Whether the format has the group size in this type too."""
    try:
        attempts.form.check(attempts.source, options.of_format)
    except ArgumentError:
        return False
    return True


def smallest_within(attempts: Attempts, out: Path) -> tuple[list[Attempt], Attempt]:
    """Write the types one after the other, the smallest first, until the engine finds one within `max_kl`.

    On the way the engine is asked for logits alone, and not about the base, which decides nothing.

    Returns:
        What was tried, and the last of it with all answers, whose files are in `out`.

    Raises:
        ArgumentError: if the engine is not installed.
        NumericError: if none is near enough.
    """
    form, bound = attempts.form, attempts.options.max_kl
    assert bound is not None
    if attempts.version is None:
        raise ArgumentError(
            f"--max-kl measures with {form.engine.name}, which is not installed",
            hint=f"install it with `{form.engine.install}`, or name a type with --quant",
        )
    tried: list[Attempt] = []
    reference = attempts.reference
    logits_alone = replace(reference, questions=replace(reference.questions, prompts=()), texts=[])
    for quant in form.smallest_first:
        options = replace(attempts.options, quant=quant)
        if not _is_taken(attempts, options):
            continue
        _empty(out)
        attempt = attempt_export(replace(attempts, options=options, base=None, reference=logits_alone), out)
        tried.append(attempt)
        assert attempt.proof is not None
        mean_kl = attempt.proof.agreement.mean_kl
        console.note(f"{quant}: {attempt.num_bytes / 1e6:,.1f} MB, mean KL {mean_kl:.3g}")
        if mean_kl <= bound:
            return tried, _opened(replace(attempts, options=options), out)
    nearest = min(attempt.proof.agreement.mean_kl for attempt in tried if attempt.proof)
    raise NumericError(
        f"no type is within --max-kl {bound:g}: the nearest has a mean KL of {nearest:.3g}; nothing was written",
        hint=f"use --max-kl {1.1 * nearest:.2g}",
    )


def _answers_of_base(attempts: Attempts, options: FormatOptions) -> Answers | None:
    """What the engine says of the base written the same way; only its logits are asked for."""
    questions = replace(attempts.reference.questions, prompts=(), base=None)
    opened_on = attempts.reference.questions.base
    if opened_on is not None:
        return None if attempts.form.loses_nothing else attempts.form.engine.ask(opened_on, questions)
    if attempts.base is None:
        return None
    with TemporaryDirectory(dir=attempts.scratch) as folder:
        _write(attempts, attempts.base, Path(folder), options)
        return attempts.form.engine.ask(Path(folder), questions)


def _write(attempts: Attempts, plain: Path, out: Path, options: FormatOptions) -> None:
    if attempts.form.write is None:
        return
    kept = attempts.scratch / f"kept-{'base' if plain == attempts.base else 'tuned'}"
    kept.mkdir(exist_ok=True)
    with progress(f"writing {attempts.options.format} {options.quant or ''}".rstrip()):
        attempts.form.write(WriteJob(plain, out, attempts.source, attempts.reference.calibration_rows, options, kept))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
