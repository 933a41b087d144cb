"""What the Hub and the way to it answer instead of doing what was asked: one line, and what to type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HTTPError

from qlora_cli.errors import ArgumentError, IdentityError, QloraError, ResourceError
from qlora_cli.hub import endpoint

TOKENS = "huggingface.co/settings/tokens"
AGAIN = "run the same command again: what is on the Hub already is not sent a second time"
MAX_REASON_CHARS = 300


@contextmanager
def hub_faults(repo: str) -> Iterator[None]:
    """Errors of huggingface_hub in the block as errors of ours.

    Raises:
        ArgumentError: if the token, the repository or the card is refused.
        IdentityError: if the repository has changed meanwhile.
        ResourceError: if the Hub does not answer, is busy, or loses what is sent.
    """
    try:
        yield
    except (HTTPError, RuntimeError, ValueError, OSError) as fault:
        raise in_words(fault, repo) from fault


def in_words(fault: BaseException, repo: str) -> QloraError:
    """The error to show for an exception of huggingface_hub or of the libraries below it."""
    one: BaseException | None = fault
    while one is not None:  # an upload's threads wrap what went wrong
        if isinstance(one, HfHubHTTPError) and one.response is not None:
            return _answered(one, one.response.status_code, repo)
        if isinstance(one, HTTPError):
            reason = " ".join(str(one).split()) or type(one).__name__
            return ResourceError(f"{endpoint()} cannot be reached: {_short(reason)}", place=repo, hint=AGAIN)
        one = one.__cause__
    reason = _short(" ".join(str(fault).split()) or type(fault).__name__)
    if "Invalid metadata" in reason:
        return ArgumentError(
            f"the Hub refuses the head of README.md: {reason}",
            place=repo,
            hint="correct it in README.md of the folder; `qlora push --dry-run` shows the card",
        )
    return ResourceError(f"the upload failed: {reason}", place=repo, hint=AGAIN)


def _answered(fault: HfHubHTTPError, status: int, repo: str) -> QloraError:
    said = _short(" ".join((fault.server_message or "").split()))
    told = f": {said}" if said else ""
    if status == 401:
        return ArgumentError(
            f"the Hub does not accept the token{told}", place=repo, hint=f"`hf auth login`, or set HF_TOKEN ({TOKENS})"
        )
    if status == 403:
        return ArgumentError(
            f"the token may not write there{told}",
            place=repo,
            hint=f"make a token with the right to write ({TOKENS}), or name a repository of your own",
        )
    if status == 404:
        return ArgumentError(
            f"there is no such repository or branch, or the token may not see it{told}",
            place=repo,
            hint="check the name for typing errors: OWNER/NAME",
        )
    if status in (409, 412):
        return IdentityError(
            f"the repository has changed while it was written to{told}",
            place=repo,
            hint="look at what is there now, then run the same command again",
        )
    if status == 429:
        return ResourceError(f"the Hub asks to wait{told}", place=repo, hint=f"wait some minutes, then {AGAIN}")
    if status >= 500:
        return ResourceError(f"the Hub fails with {status}{told}", place=repo, hint=AGAIN)
    return ArgumentError(
        f"the Hub refuses it with {status}{told}",
        place=repo,
        hint="`qlora push --dry-run` shows the files and the card",
    )


def _short(text: str) -> str:
    return text if len(text) <= MAX_REASON_CHARS else f"{text[:MAX_REASON_CHARS]}…"
