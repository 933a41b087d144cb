"""The sandbox that templates run in, faster where nothing can be unsafe.

Jinja's sandbox asks of each attribute that a template reads whether it may, which takes most of the time of templates
that look at every message for every message. Some need no question: keys of a dict, and plain values in namespaces and
loops. For all else the sandbox is asked as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment
from jinja2.runtime import LoopContext
from jinja2.utils import Namespace

_PLAIN = frozenset({bool, int, float, str, type(None), list, dict})
_NOT_KEYS = frozenset(dir(dict))
_NOTHING = object()


def quick_getattr(environment: Environment) -> Callable[[Any, str], Any]:
    """The environment's `getattr`, with the same result in every case.

    >>> from jinja2.sandbox import ImmutableSandboxedEnvironment
    >>> read = quick_getattr(ImmutableSandboxedEnvironment())
    >>> read({"role": "user"}, "role"), read({}, "role"), read({}, "clear")
    ('user', Undefined, Undefined)
    """
    asked = environment.getattr

    def read(value: Any, attribute: str) -> Any:
        if type(value) is dict:
            if attribute not in _NOT_KEYS:
                found = value.get(attribute, _NOTHING)
                return environment.undefined(obj=value, name=attribute) if found is _NOTHING else found
        elif isinstance(value, Namespace | LoopContext) and not attribute.startswith("_"):
            found = getattr(value, attribute, _NOTHING)
            if type(found) in _PLAIN:
                return found
        return asked(value, attribute)

    return read
