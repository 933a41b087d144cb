"""Files into a repository of the Hub, in one commit, and what came of it read back.

The order: look at the repository and its card, upload the large files, commit all of them, compare hashes. Until the
commit the repository is as it was, whatever ends the upload.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from qlora_cli.deploy.push.card import is_replaceable
from qlora_cli.deploy.push.faults import TOKENS, hub_faults
from qlora_cli.deploy.push.files import CARD, PushedFile
from qlora_cli.errors import ArgumentError, IdentityError, ResourceError
from qlora_cli.hub import endpoint, why_offline
from qlora_cli.progress import progress
from qlora_cli.run.files import sha256_file

NUM_PATHS = 100
"""Files that are asked for at once."""


@dataclass(frozen=True)
class Target:
    """Where the files go."""

    repo: str
    is_private: bool
    revision: str | None
    """Branch; None for the repository's own."""

    replace_card: bool
    """Also a card that somebody has written there."""


@dataclass(frozen=True)
class Uploaded:
    """The commit, and what was there before."""

    repo: str
    """With its owner."""

    url: str
    commit: str
    kept: tuple[str, ...]
    """Files of the repository that were not touched."""

    is_card_kept: bool
    """A card that somebody has written there was left as it is."""


def upload(files: Sequence[PushedFile], target: Target, message: str) -> Uploaded:
    """Make the repository where it is missing and put the files there, in one commit.

    Raises:
        ArgumentError: if there is no token, or the Hub refuses token, repository, branch or card.
        IdentityError: if the repository changed meanwhile, or what is there now is not what was sent.
        ResourceError: if the Hub cannot be reached, or fails.
    """
    if reason := why_offline():
        raise ResourceError(
            f"nothing can be uploaded: {reason}", place=target.repo, hint="try again with the Hub in reach"
        )
    token = get_token()
    if token is None:
        raise ArgumentError(
            "there is no token to write with", place=target.repo, hint=f"`hf auth login`, or set HF_TOKEN ({TOKENS})"
        )
    with _quiet_library():
        return _uploaded(HfApi(endpoint=endpoint(), token=token, library_name="qlora"), files, target, message)


def _uploaded(api: HfApi, files: Sequence[PushedFile], target: Target, message: str) -> Uploaded:
    with hub_faults(target.repo), progress("asking the Hub"):
        repo, parent = _prepared(api, target)
        there = api.list_repo_files(repo, revision=parent)
        keeps_card = CARD in there and not target.replace_card and not _is_replaceable(api, repo, parent, files)
    sent = [file for file in files if not (keeps_card and file.name == CARD)]
    additions = [CommitOperationAdd(file.name, file.content) for file in sent]
    with hub_faults(repo), progress("uploading"):
        commit = api.create_commit(
            repo, additions, commit_message=message, revision=target.revision, parent_commit=parent
        ).oid
    with hub_faults(repo), progress("comparing what is there"):
        _compare(sent, repo, _infos(api, repo, commit, [file.name for file in sent]))
    kept = tuple(sorted(set(there) - {file.name for file in sent}))
    return Uploaded(repo, f"{endpoint()}/{repo}", commit, kept, keeps_card)


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Without the bars and remarks of huggingface_hub, which would break the calm lines; errors are raised."""
    logger = logging.getLogger("huggingface_hub")
    level, had_bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            enable_progress_bars()


def _prepared(api: HfApi, target: Target) -> tuple[str, str | None]:
    """The repository's full name and the newest commit of the branch, both made where they are missing."""
    try:
        found = api.model_info(target.repo)
    except RepositoryNotFoundError as fault:
        if fault.response is not None and fault.response.status_code == 401:
            api.whoami()  # a token that is not accepted is told apart from a repository that is not there
        repo = api.create_repo(target.repo, private=target.is_private, exist_ok=True).repo_id
        found = api.model_info(repo)
    if target.is_private and found.private is False:
        raise ArgumentError(
            "is public, so what is pushed with --private would be too",
            place=found.id,
            hint="name another repository, or make this one private in its settings on the Hub",
        )
    if target.revision is None:
        return found.id, found.sha
    try:
        return found.id, api.model_info(found.id, revision=target.revision).sha
    except RevisionNotFoundError:
        api.create_branch(found.id, branch=target.revision, exist_ok=True)
        return found.id, api.model_info(found.id, revision=target.revision).sha


def _is_replaceable(api: HfApi, repo: str, commit: str | None, files: Sequence[PushedFile]) -> bool:
    """Whether the card there is one that nobody has written, or the very one that would replace it."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(api.hf_hub_download(repo, CARD, revision=commit, local_dir=folder)).read_bytes()
    ours = next((file.content for file in files if file.name == CARD), None)
    own = ours.read_bytes() if isinstance(ours, Path) else ours
    return text == own or is_replaceable(text.decode("utf-8", "replace"))


def _infos(api: HfApi, repo: str, commit: str, names: list[str]) -> Iterator[RepoFile]:
    for start in range(0, len(names), NUM_PATHS):
        for info in api.get_paths_info(repo, names[start : start + NUM_PATHS], revision=commit):
            if isinstance(info, RepoFile):
                yield info


def _compare(files: Sequence[PushedFile], repo: str, infos: Iterator[RepoFile]) -> None:
    """Every file that was sent is there with the hash that it has here."""
    there = {info.path: info for info in infos}
    for file in files:
        info = there.get(file.name)
        if info is None:
            raise IdentityError(
                f"'{file.name}' was sent, but is not in the commit: a .gitignore of the repository may name it",
                place=repo,
                hint="take that line out of the .gitignore on the Hub, then run the same command again",
            )
        is_same = info.lfs.sha256 == _sha256(file) if info.lfs is not None else info.blob_id == _git_hash(file)
        if not is_same:
            raise IdentityError(
                f"'{file.name}' there is not the file that was sent",
                place=repo,
                hint="run the same command again; do not use what is there before that",
            )


def _sha256(file: PushedFile) -> str:
    return hashlib.sha256(file.content).hexdigest() if isinstance(file.content, bytes) else sha256_file(file.content)


def _git_hash(file: PushedFile) -> str:
    """Git's name of a file that is not in LFS."""
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
