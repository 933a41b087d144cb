"""Whether the Hugging Face Hub answers: asked once, for a few seconds, before any library tries for minutes.

Where it does not, the libraries are set to offline mode: they then use the cache, or say immediately
that it is not there.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from functools import cache
from typing import Any

SECONDS = 4.0
"""The longest wait for an answer."""

DEFAULT_ENDPOINT = "https://huggingface.co"

HUB_FILES = "hf://datasets/"
"""Begins a path to files of a dataset repository, as fsspec has it."""

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)

_ADDRESS = re.compile(r"(https?://)?(www\.)?(huggingface|hf)\.co/|hf://")


def is_hub_id(name: str) -> bool:
    """Whether a name can be one of a model or a dataset on the Hub.

    >>> [is_hub_id(name) for name in ("gpt2", "Qwen/Qwen3-8B", "a/b/c", "/models/llama", "./llama", "~/llama")]
    [True, True, False, False, False, False]
    """
    return _HUB_ID.fullmatch(name) is not None


def hub_id_in(text: str) -> str | None:
    """The Hub id that an address holds, or a path that ends with a slash.

    >>> hub_id_in("https://huggingface.co/Qwen/Qwen3-8B/tree/main"), hub_id_in("hf://gpt2"), hub_id_in("Qwen/Qwen3-8B/")
    ('Qwen/Qwen3-8B', 'gpt2', 'Qwen/Qwen3-8B')
    >>> [hub_id_in(text) for text in ("Qwen/Qwen3-8B", "./models/llama/", "/", "https://huggingface.co/")]
    [None, None, None, None]
    """
    address = _ADDRESS.match(text)
    name = "/".join(text[address.end() :].split("/")[:2]) if address else text.rstrip("/")
    return name if name != text and is_hub_id(name) else None


def endpoint() -> str:
    """The address that the libraries ask."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_ENDPOINT


def start_asking(*names: str) -> None:
    """Ask in the background where one of the names is not on this machine, so that the answer is there when needed."""
    is_needed = any(is_hub_id(name) and not os.path.exists(name) for name in names)
    if is_needed and _can_be_asked():
        _question(endpoint())


def why_offline() -> str:
    """Why nothing can be fetched from the Hub, in words; empty where it answers.

    Waits up to SECONDS for the first answer. Where there is none, the Hugging Face libraries are put offline.
    """
    if said := _said_offline():
        return said
    if not _can_be_asked():
        return ""
    question = _question(endpoint())
    reason = question.answer()
    if reason:
        _put_offline()
    return reason


def _said_offline() -> str:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") and name not in _set_here:
            return f"{name} is set"
    return ""


def _can_be_asked() -> bool:
    """Not through a proxy that only the libraries know how to use; they then find out for themselves."""
    variables = {name.lower() for name, value in os.environ.items() if value}
    return not _said_offline() and not (
        "all_proxy" in variables and variables.isdisjoint({"https_proxy", "http_proxy"})
    )


_set_here: set[str] = set()
"""Variables that this module set itself, which the user did not set."""


class _Question:
    """One request to the Hub, in a thread of its own."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._reason: str | None = None
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def answer(self) -> str:
        """Why the Hub cannot be asked; empty where it answered."""
        self._thread.join(max(0.0, self._started + SECONDS - time.monotonic()))
        if self._reason is None:
            self._reason = _silent(self._address)
        return self._reason

    def _ask(self) -> None:
        reason = _try(self._address)
        if self._reason is None:
            self._reason = reason


@cache
def _question(address: str) -> _Question:
    return _Question(address)


def _try(address: str) -> str:
    """Why a request is not answered; empty where it is, whatever the answer says."""
    import urllib.error  # 30 ms that most commands do not need
    import urllib.request
    from http.client import HTTPException

    class NoRedirects(urllib.request.HTTPRedirectHandler):
        """A redirect is an answer already."""

        def redirect_request(self, *_: Any) -> None:
            return None

    try:
        request = urllib.request.Request(f"{address}/api/models?limit=1", method="HEAD")
        with urllib.request.build_opener(NoRedirects()).open(request, timeout=SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        return _in_words(address, error.reason)
    except (OSError, ValueError, HTTPException) as error:  # a broken answer, or an address that is none
        return _in_words(address, error)


def _in_words(address: str, fault: Any) -> str:
    """The reason in one short line; empty where something answered that Python's own certificates do not know.

    The libraries bring certificates of their own, and say what they find wrong.
    """
    if type(fault).__module__ == "ssl":
        return ""
    if isinstance(fault, TimeoutError):
        return _silent(address)
    reason = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
    return f"{address} cannot be reached: {' '.join(reason.split())}"


def _silent(address: str) -> str:
    return f"{address} did not answer within {SECONDS:.0f} s"


def _put_offline() -> None:
    """For libraries that are imported already, and for those that will be."""
    _set_here.add("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if (module := sys.modules.get(name)) is not None:
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
