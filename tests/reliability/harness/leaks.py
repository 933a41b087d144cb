"""Made-up secrets of every shape, ways to spell them, and a search for them in whatever was written."""

from __future__ import annotations

import base64
import json
import random
import string
from functools import cache
from pathlib import Path
from urllib.parse import quote

LETTERS = string.ascii_letters + string.digits
WINDOW = 16
"""So many characters in a row of a secret are a leak."""


def body(length: int, letters: str = LETTERS) -> str:
    """Characters without a meaning, the same in each run; no secret is written out where a scanner would find it."""
    return "".join(random.Random(f"{length} {letters}").choices(letters, k=length - 2)) + "a1"


def private_key() -> str:
    lines = [body(64, LETTERS + "+/") for _ in range(3)]
    return "\n".join(("-----BEGIN RSA PRIVATE KEY-----", *lines, "-----END RSA PRIVATE KEY-----"))


SECRETS: dict[str, tuple[str, str]] = {
    "hugging face": ("hf_{}", body(34)),
    "hugging face organization": ("api_org_{}", body(34, string.ascii_letters)),
    "w&b": ("wandb_v1_{}", body(77, LETTERS + "_")),
    "openai": ("sk-proj-{}", body(120, LETTERS + "_-")),
    "openai, old": ("sk-{}", body(48)),
    "anthropic": ("sk-ant-api03-{}", body(95, LETTERS + "_-")),
    "github": ("ghp_{}", body(36)),
    "github, fine-grained": ("github_pat_{}", body(82, LETTERS + "_")),
    "gitlab": ("glpat-{}", body(20)),
    "aws": ("AKIA{}", body(16, string.ascii_uppercase + string.digits).upper()),
    "google": ("AIza{}", body(35, LETTERS + "_-")),
    "slack": ("xoxb-{}", body(50, LETTERS + "-")),
    "json web token": ("{}", ".".join(("eyJ" + body(33), "eyJ" + body(150), body(43)))),
    "private key": ("{}", private_key()),
    "bearer": ("Authorization: Bearer {}", body(40)),
    "basic": ("Authorization: Basic {}", base64.b64encode(f"user:{body(24)}".encode()).decode()),
    "password in a URL": ("https://user:{}@example.com/rows.jsonl", body(20)),
    "signature in a URL": ("https://example.com/rows.jsonl?X-Amz-Signature={}", body(64, "0123456789abcdef")),
}
"""Kind -> the text that it stands in, and what of it must not be seen."""


def written(kind: str) -> str:
    """The secret as somebody writes it."""
    around, secret = SECRETS[kind]
    return around.format(secret)


@cache
def spellings(secret: str) -> frozenset[bytes]:
    """Pieces of the secret that tell, as it is, escaped as in JSON or a URL, and in base64 wherever it stands in it."""
    plain = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret), quote(secret, safe="")}
    found = {text[at : at + WINDOW].encode() for text in plain for at in range(max(len(text) - WINDOW, 0) + 1)}
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret.encode())[4:-4]
        found |= {encoded[:20], encoded.translate(bytes.maketrans(b"+/", b"-_"))[:20]}
    return frozenset(
        piece for piece in found if b"PRIVATE" not in piece and b"-----" not in piece and not piece.isspace()
    )


def told(text: str | bytes, *secrets: str) -> list[str]:
    """Those of the secrets of which a piece can be read in `text`."""
    raw = text.encode() if isinstance(text, str) else text
    return [secret for secret in secrets if any(piece in raw for piece in spellings(secret))]


def files_that_tell(root: Path, *secrets: str) -> dict[str, list[str]]:
    """File below `root` -> the secrets that can be read in its bytes or in its name; links are not followed."""
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        if secrets_told := told(name.encode() + b"\n" + content, *secrets):
            found[name] = secrets_told
    return found
