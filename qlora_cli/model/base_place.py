"""Where the base of a finished adapter lies: its folder may have moved since, or be another machine's."""

from __future__ import annotations

from pathlib import Path

from qlora_cli.errors import IdentityError
from qlora_cli.hub import is_hub_id
from qlora_cli.model.adapter_kind import ADAPTER_CONFIG, AdapterKind
from qlora_cli.recipe.base_files import config_here
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.recipe.stored_weights import stored_weights
from qlora_cli.run.inventory import changed_files

CONFIG_HINT = (
    "name the Hub id or folder of the adapter's base with --base-model, or write it as `base_model_name_or_path` "
    "in that file"
)


def placed_base(kind: AdapterKind) -> str:
    """The base that an adapter made elsewhere says it belongs to; `~` is the home directory.

    Raises:
        IdentityError: if it names none.
    """
    base_model = kind.base_model
    if not isinstance(base_model, str) or not base_model:
        raise IdentityError(
            f"names no base model, but {base_model!r}", place=str(kind.folder / ADAPTER_CONFIG), hint=CONFIG_HINT
        )
    return base_model


def section_without_recipe(base_model: str, revision: str | None = None) -> ModelSection:
    """A base without a recipe; one that is stored in FP8 or the like can be loaded in one way only."""
    stored = stored_weights(config_here(base_model, revision) or {})
    is_dequantized = stored is not None and stored.can_be_dequantized and not stored.is_taken_over
    return ModelSection(base_model=base_model, revision=revision, dequantize=is_dequantized)


def refuse_moved(base_model: str, residual: str | None, integers: str | None, owner: Path) -> None:
    """Refuse a base that was a folder and is not there, before anything takes its path for a name on the Hub.

    Args:
        base_model: Hub id or folder.
        residual: PiSSA's, which stands in for it.
        integers: the base in integers that was made of it for one run.
        owner: run or adapter that belongs to it.

    Raises:
        IdentityError: with what to type.
    """
    for name, folder in (("PiSSA's residual", residual), ("its run's own base in integers", integers)):
        if folder is not None and not Path(folder).is_dir():
            raise IdentityError(
                f"stands on {name}, which is not at '{folder}': it has moved, or was not copied with it",
                place=str(owner),
                hint="use the adapter inside its run directory, or put that folder back there",
            )
    path = Path(base_model).expanduser()
    if residual is None and not path.exists() and not is_hub_id(base_model):
        raise IdentityError(
            f"belongs to the base in the folder '{base_model}', which is not there: it has moved, or was never here",
            place=str(owner),
            hint="name its place with --base-model FOLDER, or its Hub id",
        )


def refuse_changed(integers: str | None) -> None:
    """Refuse a run's own base in integers that is not as it was made; None where there is none.

    Raises:
        IdentityError: naming the first file that has changed.
    """
    if integers is None:
        return
    for name in changed_files(Path(integers)):
        raise IdentityError(
            "has changed since the run made it, and its adapter was trained on it as it was",
            place=str(Path(integers) / name),
            hint="bring the file back as it was, or train again",
        )
