"""The base of what is pushed, as strangers can find it: Hub id, revision, licence. No path of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qlora_cli.hub import is_hub_id
from qlora_cli.recipe.base_files import cached_base, is_base_on_hub

CARD_BYTES = 64 * 1024
"""Longest head of a model card that is looked at."""

CARD_KEYS = ("license", "license_name", "license_link", "pipeline_tag")
SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})")
"""Folder of a base in the Hub's cache: owner, name, commit."""

UNKNOWN_LICENCE = "unknown: look at the base"


@dataclass(frozen=True)
class PushedBase:
    """The base model that an adapter stands on or a merged model was made from."""

    written: str
    """As run or adapter name it: Hub id or folder."""

    hub_id: str | None
    """None for a folder that no Hub id was given for."""

    revision: str | None = None
    card: Mapping[str, str] = field(default_factory=dict)
    """Of CARD_KEYS, those that its own model card has, where that is on this machine."""

    @property
    def name(self) -> str:
        """Hub id; of a folder its last name only."""
        return self.hub_id or last_name(self.written)

    @property
    def licence(self) -> str:
        """In words, for the card."""
        known = self.card.get("license_name") or self.card.get("license")
        return known or UNKNOWN_LICENCE


def describe_base(written: str, revision: str | None, given: str | None) -> PushedBase:
    """What is known of a base.

    Args:
        written: Hub id or folder, as it was trained on.
        revision: its commit, where that is recorded.
        given: Hub id that the user names for it.
    """
    folder = Path(written).expanduser()
    hub_id = given
    if found := SNAPSHOT.search(written):
        hub_id, revision = hub_id or f"{found[1]}/{found[2]}", revision or found[3]
    elif hub_id is None and is_hub_id(written) and not folder.exists():
        is_on_hub = is_base_on_hub(written) or cached_base(written, revision) is not None
        hub_id = written if is_on_hub else None
    here = folder if folder.is_dir() else cached_base(written, revision)
    return PushedBase(written, hub_id, revision, _card(here, hub_id) if here else {})


def last_name(path: str) -> str:
    """
    >>> last_name("/home/ada/models/llama/"), last_name("../rows.jsonl"), last_name("org/name")
    ('llama', 'rows.jsonl', 'name')
    """
    return path.rstrip("/").rpartition("/")[2]


def _card(folder: Path, hub_id: str | None) -> dict[str, str]:
    """CARD_KEYS of the base's README.md; a link to a file beside it becomes one to the Hub."""
    try:
        with (folder / "README.md").open("rb") as file:
            head = file.read(CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return {}
    found = head_values(head)
    link = found.get("license_link", "")
    if link and "://" not in link:
        found.pop("license_link")
        if hub_id:
            found["license_link"] = f"https://huggingface.co/{hub_id}/blob/main/{link}"
    return found


def head_values(card: str, keys: tuple[str, ...] = CARD_KEYS) -> dict[str, str]:
    """Values of single words or lines in the YAML head of a model card.

    >>> head_values("---\\nlicense: apache-2.0\\ntags:\\n- a\\n---\\n# Model\\nlicense: none")
    {'license': 'apache-2.0'}
    """
    if not card.startswith("---"):
        return {}
    head = card[3:].partition("\n---")[0]
    found = {}
    for key in keys:
        value = re.search(rf"^{key}:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([^\s\"'#][^\n\"'#]*?)[\"']?[ \t]*$", head, re.M)
        if value:
            found[key] = value[1]
    return found
