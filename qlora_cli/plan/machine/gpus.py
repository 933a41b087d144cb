"""Facts of GPUs from `gpus.yaml`, found by names as people type them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from qlora_cli.constants import MIB
from qlora_cli.errors import ArgumentError
from qlora_cli.plan.machine.device import Device
from qlora_cli.recipe.yaml_text import parse_yaml

GPUS_FILE = Path(__file__).with_name("gpus.yaml")

USABLE = 0.98
"""Share of `nvidia-smi`'s total that a process is counted on to have: the driver keeps a few hundred MiB for itself.
A cautious figure; `torch.cuda.mem_get_info` shows a machine's own."""

FORM_FACTORS = {"pcie", "sxm"}


@dataclass(frozen=True)
class Gpu:
    """Facts of a GPU for a plan; `gpus.yaml` says where each figure is from."""

    name: str
    memory_mib: int
    bandwidth_gb_s: float
    dense_tflops: float
    compute_capability: tuple[int, int]
    num_multiprocessors: int
    source: str
    """Address of the maker's page."""

    checked: tuple[str, ...]
    """Fields that a second source confirmed."""

    derived: bool = False
    """Whether the rate follows from the float32 rate."""

    @property
    def memory_bytes(self) -> int:
        """Bytes that a process can have."""
        return int(self.memory_mib * MIB * USABLE)

    @property
    def device(self) -> Device:
        """The card as the trace takes it."""
        return Device("cuda", self.compute_capability, self.num_multiprocessors)


@cache
def all_cards() -> dict[str, Gpu]:
    """Name -> card, in the file's order."""
    parsed = parse_yaml(GPUS_FILE.read_text("utf-8"), GPUS_FILE.name)
    assert parsed.root is not None, parsed.problems
    content = parsed.root.plain()
    cards = {}
    for name, facts in content["cards"].items():
        major, _, minor = facts["compute_capability"].partition(".")
        changed = {
            "compute_capability": (int(major), int(minor)),
            "source": content["sources"][facts["source"]],
            "checked": tuple(facts["checked"]),
        }
        cards[name] = Gpu(name, **{**facts, **changed})
    return cards


def find_card(name: str, *, otherwise: str = "For another card give its memory: --memory-gb 24") -> Gpu:
    """The card of that name, however it is written; of several that fit, the one with the least memory and rate.

    Args:
        name: as people write it.
        otherwise: what the hint says of cards that are not known, in the words of the command that asks.

    >>> find_card("4090").name, find_card("rtx-4090").name, find_card("NVIDIA GeForce RTX 4090").name
    ('RTX 4090', 'RTX 4090', 'RTX 4090')
    >>> find_card("h100").name, find_card("a100-80").name
    ('H100 80GB PCIe', 'A100 80GB')

    Raises:
        ArgumentError: if there is none.
    """
    wanted = set(_words(name))
    names = {card.name: set(_words(card.name)) for card in all_cards().values()}
    exact = [card for card, words in names.items() if words == wanted]
    wider = [card for card, words in names.items() if wanted <= words and any(map(str.isdigit, "".join(wanted)))]
    other_form = [card for card, words in names.items() if words < wanted and wanted - words <= FORM_FACTORS]
    fitting = [all_cards()[card] for card in exact or wider or other_form]
    if fitting:
        return min(fitting, key=lambda card: (card.memory_mib, card.dense_tflops))
    raise _unknown(name, otherwise)


def card_of(name: str) -> Gpu | None:
    """The card that a driver names so, where its facts are known."""
    try:
        return find_card(name)
    except ArgumentError:
        return None


def _unknown(name: str, otherwise: str) -> ArgumentError:
    compact = {"".join(_words(card)): card for card in all_cards()}
    short = {key.removeprefix("rtx"): card for key, card in compact.items()}
    close = get_close_matches("".join(_words(name)), [*compact, *short], n=3, cutoff=0.5)
    meant = list(dict.fromkeys((compact | short)[key] for key in close))
    hint = (
        f"did you mean {' or '.join(repr(card) for card in meant)}?" if meant else f"known: {', '.join(all_cards())}."
    )
    return ArgumentError(f"no facts are known of a GPU named '{name}'", hint=f"{hint} {otherwise}")


def _words(name: str) -> list[str]:
    """The parts of a GPU's name that distinguish it from others.

    >>> _words("NVIDIA GeForce RTX4060Ti 16 GB"), _words("V100-SXM2-16GB"), _words("H100 80GB HBM3")
    (['rtx', '4060', 'ti', '16'], ['v100', '16'], ['h100', '80', 'sxm'])
    """
    text = name.lower()
    for said, meant in (("hbm3", "sxm"), ("sxm4", ""), ("sxm2", ""), ("sxm5", "sxm"), ("generation", "")):
        text = re.sub(rf"\b{said}\b", meant, text)
    text = re.sub(r"\b(\d+)\s*(gb|gib|g)\b", r"\1", text)
    text = re.sub(r"\b(rtx|gtx)(?=\d)", r"\1 ", text)
    text = re.sub(r"\b(\d{4})(ti|super)\b", r"\1 \2", text)
    return [word for word in re.findall(r"[a-z0-9]+", text) if word not in ("nvidia", "geforce", "tesla")]
