"""What is pushed: which folder, of what kind, made by which run, on which base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_cli import console
from qlora_cli.constants import ADAPTER_RECORD, MERGE_RECORD
from qlora_cli.deploy.push.base import PushedBase, describe_base
from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.hub import is_hub_id
from qlora_cli.model.adapter_kind import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qlora_cli.report.record import RunRecord, read_record
from qlora_cli.run.directory import RunDirectory, latest_run
from qlora_cli.run.files import read_json_object, sha256_file

Kind = Literal["adapter", "model", "gguf", "mlx"]
AGAIN = "push a folder that `qlora train`, `qlora merge` or `qlora export` wrote, or a PEFT adapter"


@dataclass(frozen=True)
class PushedFolder:
    """A folder of a model or an adapter, and what is known of it."""

    path: Path
    kind: Kind
    base: PushedBase | None
    """None for a model folder that no record belongs to."""

    run: RunRecord | None
    """The run that made it, where it is known."""

    config: Mapping[str, Any]
    """adapter_config.json or config.json."""

    merge: Mapping[str, Any]
    """qlora_merge.json; empty where there is none."""

    @property
    def export_format(self) -> str | None:
        """The format of `qlora export`; None for a merged model as it is."""
        export = self.merge.get("export")
        return str(export["format"]) if isinstance(export, dict) and "format" in export else None


def find_folder(path: Path | None, of_run: Path | None, base_model: str | None) -> PushedFolder:
    """The folder that is pushed for `path`: of a run its adapter, else the folder itself.

    Args:
        path: run directory, adapter folder, merged or exported model; the latest run when None.
        of_run: run that an exported folder was made from, for its card.
        base_model: Hub id of the base, for a base that was trained on from a folder.

    Raises:
        ArgumentError: if there is nothing to push, or an argument does not fit.
        IdentityError: if the folder was not made from the adapter of the run, or a file is damaged.
    """
    if base_model is not None and (not is_hub_id(base_model) or Path(base_model).exists()):
        raise ArgumentError(
            f"--base-model is '{base_model}', which is not a Hub id", hint="name it as the Hub does: OWNER/NAME"
        )
    named = latest_run().path if path is None else path.expanduser()
    if path is None:
        console.note(f"the latest run is {named}")
    folder = _folder(named)
    run = _run_of(folder) if of_run is None else RunDirectory(of_run)
    config = read_json_object(folder / ADAPTER_CONFIG, hint=AGAIN) if _has(folder, ADAPTER_CONFIG) else None
    if config is not None:
        return PushedFolder(folder, "adapter", _adapter_base(folder, config, base_model), _read(run), config, {})
    merge = read_json_object(folder / MERGE_RECORD, hint=AGAIN) if _has(folder, MERGE_RECORD) else {}
    if run is not None:
        _refuse_other_run(folder, merge, run)
    config = read_json_object(folder / "config.json", hint=AGAIN) if _has(folder, "config.json") else {}
    base = describe_base(merge["base_model"], merge.get("base_revision"), base_model) if merge else None
    return PushedFolder(folder, _model_kind(folder, config), base, _read(run), config, merge)


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _folder(named: Path) -> Path:
    """The adapter of a run; else the folder that was named."""
    run = RunDirectory(named)
    if run.is_started:
        if not _has(run.adapter_path, ADAPTER_CONFIG):
            raise ArgumentError(
                f"run '{run.path}' is not finished: it has no adapter yet",
                hint=f"finish it with `{run.resume_command}`",
            )
        return run.adapter_path
    is_model = named.is_dir() and (
        _has(named, ADAPTER_CONFIG) or _has(named, "config.json") or any(named.glob("*.gguf"))
    )
    if not is_model:
        raise ArgumentError(f"'{named}' is not a run directory, an adapter or a model folder", hint=AGAIN)
    return named


def _run_of(folder: Path) -> RunDirectory | None:
    """The run whose adapter/ or merged/ the folder is."""
    run = RunDirectory(folder.resolve().parent)
    is_part = folder.resolve() in (run.adapter_path, run.merged_path)
    return run if is_part and run.is_started else None


def _read(run: RunDirectory | None) -> RunRecord | None:
    return None if run is None else read_record(run)


def _adapter_base(folder: Path, config: Mapping[str, Any], given: str | None) -> PushedBase:
    written, revision = config.get("base_model_name_or_path"), config.get("revision")
    if _has(folder, ADAPTER_RECORD):
        record = read_json_object(folder / ADAPTER_RECORD, hint=AGAIN)
        for part, name in (("residual", "PiSSA's residual"), ("integers", "a base in integers of its own")):
            if record.get(part):
                raise ArgumentError(
                    f"stands on {name}, which lies in its run: alone it is another model",
                    place=str(folder),
                    hint="`qlora merge` first, then push the merged model",
                )
        model = record.get("model")
        if isinstance(model, dict):
            written, revision = model.get("base_model", written), model.get("revision", revision)
    return describe_base(str(written or "unknown"), revision if isinstance(revision, str) else None, given)


def _model_kind(folder: Path, config: Mapping[str, Any]) -> Kind:
    if any(folder.glob("*.gguf")):
        return "gguf"
    stored = config.get("quantization")  # MLX's key; transformers has quantization_config
    return "mlx" if isinstance(stored, dict) and "group_size" in stored else "model"


def _refuse_other_run(folder: Path, merge: Mapping[str, Any], run: RunDirectory) -> None:
    """The card's figures must be those of the weights: the folder was made from the adapter of this run."""
    weights = run.adapter_path / ADAPTER_WEIGHTS
    if not weights.is_file() or merge.get("adapter_sha256") != sha256_file(weights):
        raise IdentityError(
            f"was not made from the adapter that run '{run.path}' holds now",
            place=str(folder),
            hint=f"make it again from that run with `qlora merge {run.path} --force`, or push it without that run",
        )
