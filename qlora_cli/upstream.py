"""Whether the installed libraries have the names that we need of them and that they do not promise to keep.

A library may rename a private method in any release. A method of ours that overrode it would then never be called, and
training would go on with the stock behaviour: nobody would see that a resume is no longer exact. So each road looks at
its names in `upstream_names.py` before it is taken, and ends in one error where one is gone.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from types import CodeType
from typing import Any

from qlora_cli.errors import ResourceError
from qlora_cli.upstream_names import NAMES
from qlora_cli.upstream_row import TESTED, Name, Road, Use


@cache
def check(road: Road) -> None:
    """Make sure that the installed libraries have what `road` needs; imports them.

    Raises:
        ResourceError: naming the first that is gone, who needs it, and the version that has it.
    """
    for name in NAMES:
        if name.road is road and (gone := what_is_gone(name)):
            raise _error(name, gone)


def check_alone(num_processes: int) -> None:
    """Make sure that accelerate leaves each process of several to itself, as it does where it sees no launcher.

    Args:
        num_processes: how many accelerate trains with.

    Raises:
        ResourceError: if it has found the others by a variable that we did not hide.
    """
    if num_processes != 1:
        raise _error("accelerate", f"joins the {num_processes} processes, each of which must train as if it were alone")


def all_gone() -> list[ResourceError]:
    """One error for each name of the table that is gone; those of a GPU count only where torch was built for one."""
    is_for_gpus = import_module("torch").backends.cuda.is_built()
    names = [name for name in NAMES if is_for_gpus or name.road is not Road.CALIBRATION]
    return [_error(name, gone) for name in names if (gone := what_is_gone(name))]


def behind(fault: BaseException) -> ResourceError | None:
    """The error to show for a fault that has ended a command, where it came of a name of the table that is gone."""
    if not isinstance(fault, ImportError | AttributeError):
        return None
    module = f"{fault.name}." if isinstance(fault, ModuleNotFoundError) else None
    for name in NAMES:
        is_below = module is not None and _whole(name).startswith(module)
        if is_below or name.path.rpartition(".")[2] in str(fault):
            with suppress(ImportError):
                if gone := what_is_gone(name):
                    return _error(name, gone)
    return None


def what_is_gone(name: Name) -> str:
    """What the installed library lacks, such as "has no Trainer._load_rng_state"; empty where all is there.

    Raises:
        ImportError: if the library itself cannot be imported.
    """
    try:
        found = _resolve(_whole(name))
    except AttributeError:
        return f"has no {_shown(name)}"
    if name.inside and not any(name.path in _words(code) for code in _codes(found)):
        return f"has no {_shown(name)}"
    owner, _, method = name.path.rpartition(".")
    if name.use is Use.OVERRIDDEN and not _is_called(_resolve(f"{name.module}.{owner}"), method):
        return f"no longer calls {name.path}"
    if name.returns_last and not _returns_last(found, name.returns_last):
        return f"no longer returns {name.returns_last} last from {name.path}"
    return ""


def _error(name: Name | str, what: str) -> ResourceError:
    library, need = (name, "") if isinstance(name, str) else (name.library, f", which {name.need} needs")
    tested = TESTED[library]
    return ResourceError(
        f"{library} {metadata.version(library)} {what}{need}", hint=f"pip install '{library}=={tested}'"
    )


def _whole(name: Name) -> str:
    return f"{name.module}.{name.inside or name.path}"


def _shown(name: Name) -> str:
    """The name as an error shows it: without its library."""
    return f"{name.path} in {name.inside}" if name.inside else _whole(name).partition(".")[2]


def _resolve(path: str) -> Any:
    """What a dotted path leads to; modules on the way are imported.

    Raises:
        AttributeError: if it leads nowhere.
        ImportError: if a module that is there cannot be imported.
    """
    library, *parts = path.split(".")
    found: Any = import_module(library)
    for part in parts:
        is_module = hasattr(found, "__path__") and not hasattr(found, part) and find_spec(f"{found.__name__}.{part}")
        found = import_module(f"{found.__name__}.{part}") if is_module else getattr(found, part)
    return found


def _codes(found: Any) -> Iterator[CodeType]:
    """The code of a function, method or property, and of all that is written inside it; none of anything else."""
    plain = inspect.unwrap(getattr(found, "fget", None) or found)
    left = [plain.__code__] if hasattr(plain, "__code__") else []
    while left:
        code = left.pop()
        yield code
        left += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _words(code: CodeType) -> set[str]:
    """Names and texts that a function's code holds."""
    lists = [constant if isinstance(constant, tuple) else (constant,) for constant in code.co_consts]
    return {*code.co_names} | {text for texts in lists for text in texts if isinstance(text, str)}


def _is_called(owner: type, method: str) -> bool:
    """Whether a class or one that it derives from calls a method, other than from the method itself."""
    functions = {name: function for base in owner.__mro__ for name, function in vars(base).items() if name != method}
    return any(
        method in _words(code)
        for function in functions.values()
        if inspect.isfunction(function)
        for code in _codes(function)
    )


def _returns_last(function: Any, variable: str) -> bool:
    """Whether a function ends by returning several values, of which the last is the variable."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError):  # there is no source to look at
        return False
    returned = [node.value for node in ast.walk(body) if isinstance(node, ast.Return)]
    return bool(returned) and all(
        isinstance(value, ast.Tuple) and isinstance(value.elts[-1], ast.Name) and value.elts[-1].id == variable
        for value in returned
    )
