"""Whether the Hugging Face Hub gives what training would ask it for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, TimeoutError

from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, get_session, httpx

from qlora_cli.plan.machine.extras import one_line
from qlora_cli.plan.machine.finding import DoctorFinding

SECONDS = 2.0
"""The longest wait."""

MODEL = "openai-community/gpt2"
"""Model that is asked for; any public one would do."""


def try_hub() -> DoctorFinding:
    """Ask the Hub for the facts of a model, with the token in use and as the libraries ask; at most `SECONDS`."""
    what, address = "Hub", constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return DoctorFinding(what, "not tested: HF_HUB_OFFLINE is set", is_tried=False)
    answer: Future[int] = Future()
    started = time.perf_counter()
    # A thread, because no time limit of the library's reaches into the look-up of the address.
    threading.Thread(target=_ask, args=(address, answer), daemon=True).start()
    offline = "without it, use local folders and `export HF_HUB_OFFLINE=1`"
    try:
        status = answer.result(timeout=SECONDS)
    except TimeoutError:
        return DoctorFinding(what, f"{address} did not answer within {SECONDS:.0f} s; {offline}", is_fine=False)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as fault:
        return DoctorFinding(what, f"{address} cannot be reached: {one_line(fault)}; {offline}", is_fine=False)
    if status in (401, 403):
        return DoctorFinding(what, f"{address} refuses the token (HTTP {status}): `hf auth login`", is_fine=False)
    if status != httpx.codes.OK:
        return DoctorFinding(what, f"{address} answers with HTTP {status}; {offline}", is_fine=False)
    return DoctorFinding(what, f"{address} answers in {time.perf_counter() - started:.1f} s")


def _ask(address: str, answer: Future[int]) -> None:
    """Put the status of the answer, or what went wrong, into `answer`."""
    try:
        response = get_session().get(f"{address}/api/models/{MODEL}", headers=build_hf_headers(), timeout=SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as fault:
        answer.set_exception(fault)
    else:
        answer.set_result(response.status_code)
