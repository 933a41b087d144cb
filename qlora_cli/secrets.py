"""Secrets by their shape and by their value, so that nothing which is written down or printed holds one.

A shape is what the issuer gives its keys so that they can be found: `hf_…` (huggingface.co/docs/hub/security-tokens),
`wandb_v1_…` (docs.wandb.ai, the 86-character keys), `sk-…` (platform.openai.com, docs.anthropic.com, openrouter.ai),
`ghp_…` and its kin (github.blog, "Behind GitHub's new authentication token formats"), `glpat-…` (docs.gitlab.com, token
overview), `AKIA…` (AWS IAM, unique identifiers), `AIza…` (cloud.google.com, API keys), `xoxb-…` (api.slack.com, token
types); JSON Web Tokens (RFC 7519), private keys (RFC 7468), `Bearer` (RFC 6750), `Basic` (RFC 7617), passwords in URLs
(RFC 3986, section 3.2.1), signatures in URLs (AWS Signature Version 4, Azure SAS, Google Cloud Storage).

W&B's older keys are 40 hexadecimal digits, as commits are. Such a key counts only where this process can see that it is
one: by the name of an environment variable, or in the files where `wandb login` and `hf auth login` put theirs.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

MIN_VALUE_CHARS = 16
"""A shorter value of an environment variable may be a word that occurs elsewhere too."""


@dataclass(frozen=True)
class Shape:
    """Form of the secrets of one issuer."""

    kind: str
    marks: tuple[str, ...]
    """One of these is in every text that holds such a secret; patterns are compiled only once one was seen."""

    pattern: str
    """Matches the secret alone. It matches no quote, so that JSON, YAML and HTML stay what they are."""


# Each pattern reads a text once: it ends where it fails, and what it looks ahead for is near.
SHAPES = (
    Shape(
        "Hugging Face token",
        ("hf_", "api_org_"),
        r"hf_(?:oauth|jwt)_[A-Za-z0-9_.-]{30,}|(?:hf|api_org)_[A-Za-z0-9]{30,}",
    ),
    Shape("W&B API key", ("wandb_v",), r"wandb_v\d+_[A-Za-z0-9_]{40,}"),
    Shape("Anthropic API key", ("sk-ant-",), r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
    Shape("OpenAI API key", ("sk-",), r"\bsk-(?:(?:proj|svcacct|admin|or)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{32,})"),
    Shape(
        "GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,}",
    ),
    Shape("GitLab token", ("glpat-",), r"glpat-[A-Za-z0-9_.-]{20,}"),
    Shape("AWS access key", ("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    Shape("Google API key", ("AIza",), r"AIza[A-Za-z0-9_-]{35}"),
    Shape("Slack token", ("xox", "xapp-"), r"\b(?:xox[a-z]|xapp)-[A-Za-z0-9-]{10,}"),
    Shape(
        "JSON Web Token",
        ("eyJ",),
        r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    ),
    Shape(
        "private key",
        ("PRIVATE KEY-----",),
        # Its line ends may be written `\n`, as JSON does, or `\x0a`; a key that was cut off has no END.
        r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----(?:\\(?:[nr]|x0[ad])|[A-Za-z0-9+/=:,\s]|-(?!-)){16,}"
        r"(?:-----END [A-Z ]{0,20}PRIVATE KEY-----)?",
    ),
    # A digit is asked for where prose would fit too: "bearer responsibilities".
    Shape(
        "bearer token",
        ("earer ", "EARER ", "earer%20"),
        r"(?i:(?<=bearer )|(?<=bearer%20))(?=[A-Za-z._~+/=-]{0,200}\d)[A-Za-z0-9._~+/=-]{16,}",
    ),
    Shape(
        "basic credentials",
        ("asic ", "ASIC "),
        r"(?i:(?<=basic ))(?=[A-Z0-9+/]{0,200}[a-z])(?=[a-z0-9+/]{0,200}[A-Z])(?=[A-Za-z+/]{0,200}[0-9=])"
        r"[A-Za-z0-9+/]{12,}={0,2}",
    ),
    # Not `user:$PASSWORD@` and `user:<password>@`, which only stand for one.
    Shape("password in a URL", ("://",), r"(?<=://)[^\s/:@'\"\\<>]*:(?![$<{*])[^\s/@'\"\\<>]+(?=@)"),
    Shape(
        "signature in a URL",
        ("ignature=", "sig=", "oken=", "key="),
        r"(?i:(?<=[?&;-]signature=)|(?<=[?&;]sig=)|(?<=[?&;]token=)|(?<=access_token=)|(?<=security-token=)"
        r"|(?<=api_key=))(?=[A-Za-z%._~+/=-]{0,200}\d)[A-Za-z0-9%._~+/=-]{16,}",
    ),
)

SECRET_WORDS = {"TOKEN", "SECRET", "APIKEY", "CREDENTIAL", "CREDENTIALS", "PASSPHRASE", "PASSWORD", "PASSWD"}
KEY_WORDS = {"API", "ACCESS", "PRIVATE"}
"""Words before `KEY` that make it a secret one."""


def find_secret(text: str) -> str:
    """The kind of a secret that `text` holds; empty where it holds none.

    >>> find_secret("meta-llama/Llama-3.1-8B"), find_secret("hf_" + "a1" * 17)
    ('', 'Hugging Face token')
    """
    for kind, spelling in known_values():
        if spelling in text:
            return kind
    for shape in SHAPES:
        if any(mark in text for mark in shape.marks) and re.search(shape.pattern, text):
            return shape.kind
    return ""


def redacted(text: str) -> str:
    """`text` with a few words in place of each secret; they are plain text in JSON, YAML and HTML.

    >>> redacted("401 for token hf_" + "a1" * 17 + ", at once")
    '401 for token (secret Hugging Face token), at once'
    """
    for kind, spelling in known_values():
        if spelling in text:
            text = text.replace(spelling, _mark(kind))
    for shape in SHAPES:
        if any(mark in text for mark in shape.marks):
            text = re.sub(shape.pattern, _mark(shape.kind), text)
    return text


def redacted_values(value: Any) -> Any:
    """`value` with every text in it redacted, through lists and dicts."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, list):
        return [redacted_values(item) for item in value]
    if isinstance(value, dict):
        return {redacted_values(key): redacted_values(item) for key, item in value.items()}
    return value


def _mark(kind: str) -> str:
    return f"(secret {kind})"


@cache
def known_values() -> tuple[tuple[str, str], ...]:
    """Kind and spelling of each value that is known to be secret, the longest first; read once in a process."""
    found = {}
    for name, value in os.environ.items():
        if _says_secret(name) and not os.path.exists(value):  # a path that exists leads to the secret
            found[value.strip()] = f"value of {name}"
    for value in _logged_in():
        found.setdefault(value, "token of a login file")
    spellings = {
        spelling: kind
        for value, kind in found.items()
        if len(value) >= MIN_VALUE_CHARS
        for spelling in _spellings(value)
    }
    return tuple((spellings[text], text) for text in sorted(spellings, key=len, reverse=True))


def _says_secret(name: str) -> bool:
    """Whether an environment variable's name says that its value is secret.

    >>> [_says_secret(name) for name in ("WANDB_API_KEY", "PGPASSWORD", "TOKENIZERS_PARALLELISM", "KEY_REPEAT")]
    [True, True, False, False]
    """
    words = name.upper().split("_")
    is_key = any(after == "KEY" and word in KEY_WORDS for word, after in pairwise(words))
    return is_key or not SECRET_WORDS.isdisjoint(words) or words[-1].endswith(("PASSWORD", "PASSWD", "APIKEY"))


def _logged_in() -> list[str]:
    """Secrets that `hf auth login` and `wandb login` have stored; a file that cannot be read holds none."""
    home = os.path.expanduser("~")
    cache_home = os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    hf_home = os.environ.get("HF_HOME") or f"{cache_home}/huggingface"
    token = _text_of(os.environ.get("HF_TOKEN_PATH") or f"{hf_home}/token")
    netrc = _text_of(os.environ.get("NETRC") or f"{home}/.netrc")
    return [token.strip(), *re.findall(r"\bpassword\s+(\S+)", netrc)]


def _text_of(path: str) -> str:
    try:
        return Path(path).expanduser().read_text("utf-8") if os.path.isfile(os.path.expanduser(path)) else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _spellings(value: str) -> set[str]:
    """The value as it is, as JSON, Python and URLs escape it, and in base64 at any offset of what was encoded."""
    import base64  # these two only where there is a secret: 2 ms of a start
    from urllib.parse import quote, quote_plus

    found = {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    found |= {quote(value), quote(value, safe=""), quote_plus(value)}
    raw = value.encode()
    for shift, num_unsure in enumerate((0, 2, 3)):  # bytes before it -> characters that these have a part in
        num_sure = (shift + len(raw)) * 8 // 6
        encoded = base64.b64encode(bytes(shift) + raw)[num_unsure:num_sure].decode()
        found |= {encoded, encoded.translate(str.maketrans("+/", "-_"))}
    return found
