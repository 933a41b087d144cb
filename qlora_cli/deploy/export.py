"""`qlora export`: one folder to hand on, and the proof that tools without this project can use it.

`deploy/formats.table.py` says what the folder holds.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from qlora_cli.choices import ExportFormat
from qlora_cli.constants import MERGE_RECORD
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.formats.table import FORMATS
from qlora_cli.deploy.merge import MergeOptions, adapter_identity, check_mergeable, merge_into
from qlora_cli.deploy.record import Precisions
from qlora_cli.deploy.verify import MAX_KL_ROUNDED, Agreement, compare, record_logits, refuse_disagreement
from qlora_cli.errors import IdentityError
from qlora_cli.model.device import free_memory, precision_of
from qlora_cli.model.tuned import TunedSource, find_tuned, load_tuned
from qlora_cli.progress import progress
from qlora_cli.run.files import read_json_object, write_json
from qlora_cli.run.staging import staged_folder

PROOF_MESSAGES = [{"role": "user", "content": "Name three primary colours."}]


@dataclass(frozen=True)
class Exported:
    """An exported folder and what comes of loading it."""

    path: Path
    format: ExportFormat
    is_merged_anew: bool
    """False where the run's merged model was copied."""

    agreement: Agreement
    """Adapter on its base against the exported model, on one prompt that the exported tokenizer rendered."""

    compared_in: Precisions

    def figures(self) -> dict[str, str]:
        """Label and value, for people."""
        return self.agreement.figures() | {"compared in": str(self.compared_in)}


def export_run(path: TunedSource | Path | None, out: Path, *, format: ExportFormat, force: bool) -> Exported:
    """Write the tuned model of a run or adapter into `out` in a format, and prove that it is the same model.

    A merged model of the same adapter in the run is copied; otherwise the adapter is merged first, in the
    precision of the base, onto the weights that training saw.

    Args:
        path: run directory or PEFT adapter folder; the latest run when None.
        out: folder to make.
        format: a key of FORMATS in `deploy/formats.table.py`.
        force: replace a model folder that is already there.

    Raises:
        ArgumentError, IdentityError, NumericError: as `merge_run`.
        IdentityError: also if the exported tokenizer renders another prompt.
    """
    source = find_tuned(path)
    with staged_folder(out, force=force) as stage:
        merged = _merged_before(source)
        if merged is None:
            options = MergeOptions()
            merge_into(stage, source, options, check_mergeable(source, options))
        else:
            with progress("copying the merged model"):
                shutil.copytree(merged, stage, dirs_exist_ok=True)
        FORMATS[format].convert(stage, source)
        exported = Exported(out, format, merged is None, *_prove(source, stage, format))
        _add_to_record(stage, exported)
    return exported


def _merged_before(source: TunedSource) -> Path | None:
    """The run's merged model, where it was made from this very adapter."""
    adapter_sha256 = adapter_identity(source)
    if source.run is None or not (source.run.merged_path / MERGE_RECORD).is_file():
        return None
    for path in source.run.merged_path.rglob("*"):
        if path.is_symlink():
            raise IdentityError(
                "is a link, and an export would hand on what it leads to",
                place=str(path),
                hint="merge again with `qlora merge --force`",
            )
    record = _read_record(source.run.merged_path)
    return source.run.merged_path if record.get("adapter_sha256") == adapter_sha256 else None


def _prove(source: TunedSource, folder: Path, format: ExportFormat) -> tuple[Agreement, Precisions]:
    """Load `folder` without anything of this project and compare it with base and adapter."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=source.model.trust_remote_code)
    prompt = tokenizer.apply_chat_template(PROOF_MESSAGES, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    expected, precision = _tuned_logits(source, prompt, ids)
    free_memory()  # it is needed for the exported model
    with progress("loading the exported model"):
        model = FORMATS[format].load(folder, source).eval()
    agreement = compare(expected, record_logits(model, [ids]))
    # The bound that the merge was held to, which is a wide one for --onto original; a float32 merge is compared
    # here across devices, so nothing tighter than rounding is asked.
    refuse_disagreement(agreement, max(MAX_KL_ROUNDED, _read_record(folder)["max_kl"]))
    return agreement, Precisions(precision, precision_of(model))


def _tuned_logits(source: TunedSource, prompt: str, ids: list[int]) -> tuple[list[torch.Tensor], str]:
    tuned = load_tuned(source)
    template = Renderer(tuned.tokenizer).template
    trained_on = tuned.tokenizer.apply_chat_template(
        PROOF_MESSAGES, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    if prompt != trained_on or ids != tuned.tokenizer(prompt, add_special_tokens=False).input_ids:
        raise IdentityError(
            f"the exported tokenizer renders another prompt than training saw: {prompt!r}, not {trained_on!r}",
            hint="merge again with `qlora merge --force`, then export",
        )
    return record_logits(tuned.model, [ids]), precision_of(tuned.model)


def _add_to_record(folder: Path, exported: Exported) -> None:
    """Add the result of loading the folder to the figures of the merge."""
    proof = {
        "format": exported.format,
        "agreement": asdict(exported.agreement),
        "compared_in": asdict(exported.compared_in),
    }
    write_json(folder / MERGE_RECORD, _read_record(folder) | {"export": proof})


def _read_record(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / MERGE_RECORD, hint="merge again with `qlora merge --force`")
