"""Whether a base can be had at all: from a folder, from the Hub's cache, or from the Hub."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from qlora_cli import console
from qlora_cli.errors import RecipeError
from qlora_cli.hub import is_hub_id, why_offline
from qlora_cli.recipe.base_files import path_hint
from qlora_cli.recipe.shipped import command_for_base


class UnreachableBaseError(RecipeError):
    """The base is not on this machine, and the Hub cannot be asked for it. Exit code 2."""


def refuse_missing_folder(name: str) -> None:
    """Refuse, before any library is loaded, a base that can only be a folder of this machine and is not there.

    Raises:
        RecipeError: if it is the path of a folder, or what a command makes, which the Hub is not asked for.
    """
    if Path(name).exists():
        return
    if command_for_base(name):
        text = f"model.base_model '{name}' is not there yet: it is not downloaded, but made here"
        raise RecipeError(text, hint=path_hint(name))
    if not is_hub_id(name):
        raise RecipeError(f"model.base_model '{name}' cannot be loaded: no such folder", hint=path_hint(name))


def look_for_base(name: str, revision: str | None = None) -> None:
    """Find out within seconds what a library would take minutes for.

    Args:
        name: folder or Hub id.
        revision: on the Hub.

    Raises:
        UnreachableBaseError: if it is on the Hub at best, and that does not answer.
        RecipeError: as `refuse_missing_folder`.
    """
    refuse_missing_folder(name)
    if Path(name).exists() or not (reason := why_offline()):
        return
    from huggingface_hub import try_to_load_from_cache  # 0.2 s that a refusal needs not

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        _say_once(reason)
        return
    raise UnreachableBaseError(
        f"model.base_model '{name}' cannot be loaded: it is neither a folder here nor in the Hub's cache, and {reason}",
        hint=f"{way_to_the_hub(reason)}, or name a local folder (`hf download {name}` where there is a network)",
    )


def way_to_the_hub(reason: str) -> str:
    """Hint on how to reach the Hub.

    Args:
        reason: as `why_offline` gives it.
    """
    variable, is_set, _ = reason.partition(" is set")
    return f"`unset {variable}`" if is_set else "check the network, and HF_ENDPOINT if it is set"


@cache
def _say_once(reason: str) -> None:
    if not reason.endswith(" is set"):  # else it is what the user wants
        console.note(f"{reason}; the files in the Hub's cache are taken")
