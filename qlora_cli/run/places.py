"""Places that no command makes its own: what is written there would mix with other files, or replace them."""

from __future__ import annotations

from pathlib import Path

from qlora_cli.errors import ArgumentError


def refuse_place(path: Path, *, hint: str) -> None:
    """Refuse the current directory, the home directory, what holds one of them, and the top of a git work tree.

    Raises:
        ArgumentError: saying which it is.
    """
    place = path.resolve()
    for name, special in (("current", Path.cwd()), ("home", Path.home())):
        special = special.resolve()
        if place == special:
            raise ArgumentError(f"'{path}' is the {name} directory", hint=hint)
        if place in special.parents:
            raise ArgumentError(f"'{path}' holds the {name} directory", hint=hint)
    if (place / ".git").exists():
        raise ArgumentError(f"'{path}' is a git work tree", hint=hint)
