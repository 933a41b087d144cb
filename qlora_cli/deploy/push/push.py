"""`qlora push`: an adapter, a merged model or an exported folder to the Hub, with a card made of what was recorded.

folder.py   what is pushed, by which run it was made, on which base
files.py    the files on the list, without links out, paths of this machine and secrets
head.py     what the Hub searches by
card.py     the model card
upload.py   one commit, and its hashes read back
faults.py   what the Hub answers instead
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from qlora_cli import console
from qlora_cli.deploy.push.base import head_values
from qlora_cli.deploy.push.card import is_replaceable, model_card
from qlora_cli.deploy.push.files import CARD, WEIGHTS, PushedFile, collect_files, is_path, refuse_secrets
from qlora_cli.deploy.push.folder import Kind, PushedFolder, find_folder
from qlora_cli.deploy.push.upload import Target, Uploaded, upload
from qlora_cli.errors import ArgumentError
from qlora_cli.run.inventory import listed_files

WEIGHT_ENDINGS = (*(pattern.removeprefix("*") for pattern in WEIGHTS), ".bin")


@dataclass(frozen=True)
class PushOptions:
    """What the command line adds to folder and repository."""

    is_private: bool = False
    is_dry_run: bool = False
    revision: str | None = None
    replace_card: bool = False
    of_run: Path | None = None
    base_model: str | None = None


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or would be."""

    path: Path
    kind: Kind
    repo: str
    files: tuple[PushedFile, ...]
    """The card among them."""

    left_here: tuple[str, ...]
    """Files and folders beside them, which stay on this machine."""

    card: str
    is_card_yours: bool
    """The folder's README.md was written by somebody and is the card."""

    uploaded: Uploaded | None
    """None for a dry run."""

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        done = self.uploaded
        return {
            "path": str(self.path),
            "kind": self.kind,
            "repo": self.repo,
            "files": {file.name: file.num_bytes for file in self.files},
            "left_here": list(self.left_here),
            "card": self.card,
            "is_card_yours": self.is_card_yours,
            "uploaded": done and {"url": done.url, "commit": done.commit, "kept": list(done.kept)},
            "is_card_kept": done is not None and done.is_card_kept,
        }


def push_folder(path: Path | None, repo: str, options: PushOptions) -> Pushed:
    """Push the adapter of a run, or a folder of a model, to a repository of the Hub.

    Args:
        path: run directory, adapter folder, merged or exported model; the latest run when None.
        repo: OWNER/NAME; without an owner that of the token.
        options: what the command line adds.

    Raises:
        ArgumentError, IdentityError: if the folder, its files or the arguments do not fit; nothing is sent then.
        ArgumentError, IdentityError, ResourceError: as `upload`.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as fault:
        raise ArgumentError(
            f"'{repo}' is no name of a repository", hint="name it as the Hub does: OWNER/NAME"
        ) from fault
    folder = find_folder(path, options.of_run, options.base_model)
    files, left_here = collect_files(folder)
    card, is_yours = _card(folder, repo)
    files = [PushedFile(CARD, card), *files]
    refuse_secrets(files[:1], folder.path)
    if folder.kind == "adapter" and folder.base is not None and folder.base.hub_id is None:
        console.warn(
            f"the base is the folder '{folder.base.name}': who downloads the adapter cannot find it by that name; "
            "--base-model OWNER/NAME names it"
        )
    uploaded = None
    if not options.is_dry_run:
        target = Target(repo, options.is_private, options.revision, options.replace_card)
        uploaded = upload(files, target, f"{folder.kind} pushed by qlora")
        _tell(uploaded)
    name = uploaded.repo if uploaded is not None else repo
    text = card.decode("utf-8", "replace")
    return Pushed(folder.path, folder.kind, name, tuple(files), tuple(left_here), text, is_yours, uploaded)


def _card(folder: PushedFolder, repo: str) -> tuple[bytes, bool]:
    """The card, and whether it is README.md of the folder, because somebody has written that."""
    own = folder.path / CARD
    if own.is_symlink() or not own.is_file():
        return model_card(folder, repo).encode(), False
    content = own.read_bytes()
    text = content.decode("utf-8", "replace")
    if is_replaceable(text) or CARD in listed_files(folder.path):  # merge copies the base's own card
        return model_card(folder, repo).encode(), False
    written = head_values(text, ("base_model",)).get("base_model", "")
    if is_path(written):
        raise ArgumentError(
            f"its base_model is '{written}', a path, which the Hub refuses",
            place=str(own),
            hint="write the base's Hub id there, or take README.md away, and qlora writes a card",
        )
    return content, True


def _tell(uploaded: Uploaded) -> None:
    """What in the repository is not of this push."""
    if uploaded.is_card_kept:
        console.warn(
            f"README.md of {uploaded.repo} was written by somebody and stays; --replace-card replaces it, "
            "--dry-run shows the one that was made"
        )
    if strange := [name for name in uploaded.kept if name.endswith(WEIGHT_ENDINGS)]:
        console.warn(f"weights of another model stay in {uploaded.repo}: {', '.join(strange)}")
